"""Adapters to other libraries. Each needs the package that it is named after, and imports it when it is used."""
