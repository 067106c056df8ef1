"""Objectives that wrap another objective."""
