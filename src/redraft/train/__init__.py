"""Training: a recipe in, a model out. ``loop.train`` runs it; ``recipe.Recipe`` describes it."""
