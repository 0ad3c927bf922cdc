"""Simulated robots behind one gymnasium interface, with scripted experts that demonstrate their tasks."""
