"""Pure tensor functions: routing, dispatch, experts and losses. No modules, no state."""
