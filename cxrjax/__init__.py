"""cxrjax: pre-training and honest evaluation of chest X-ray encoders in JAX.

Axis letters, in comments, docstrings and einops strings everywhere:

    b batch    v views    h w pixels    p q patch grid    n tokens    l text tokens
    d width    k prototypes or neighbours    c classes
"""

__version__ = "0.1.0"
