"""Vision-language-action models: Embodiment, Backbone, ActionDecoder.

Importing this package does nothing: no registration, no torch import. Take names from the module that defines them.
"""

__version__ = "0.1.0"
