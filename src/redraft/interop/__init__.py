"""Adapters to outside harnesses and engines. Each needs the package it is named after, and nothing else needs them."""
