"""How a block looks: colours, axes, templates, and how data gets into one self-contained file."""
