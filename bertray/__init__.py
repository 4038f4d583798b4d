"""Reviews in, sentiment labels out, proof beside them: BERT-family models on Ray.

Importing the package is cheap: neither torch nor ray nor transformers is imported here.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
