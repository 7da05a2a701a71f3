"""Stages as a graph: from images to a champion."""
