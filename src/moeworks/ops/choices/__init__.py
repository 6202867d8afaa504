"""Ways to choose experts by their scores, as functions of tensors; routers use them in layers/choices.py."""
