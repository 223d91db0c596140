"""Prompt to picture: schedule, samplers, loop, pipeline, command line."""
