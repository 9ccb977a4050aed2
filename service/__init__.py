"""The roof: recipes, the pipeline, exports, and the command line."""
