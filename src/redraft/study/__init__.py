"""Claims about diffusion language models as experiments: a recipe, cells that are computed once, and a verdict."""
