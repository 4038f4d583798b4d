"""Config, weights and tokenizer of a model folder: the one place in which `transformers` and `tokenizers` read them.

No code of a folder is ever run, weights are read as safetensors only, and nothing is fetched. What a library cannot
read is a `ConfigError` that names the file. Weights that a model needs and its folder lacks are refused: `transformers`
would draw them at random.
"""
