"""The native library, loaded when it is there: `library()` or the reason why not."""
