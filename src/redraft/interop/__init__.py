"""Adapters to other libraries. Each needs the package that it is named after; no other module imports them."""
