"""Whole models built from layers."""
