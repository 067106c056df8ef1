"""Records generations, measures the order in which they were written, and renders a page that replays them."""
