"""nn.Modules of a decoder. Single-device code: parallelism is applied from outside."""
