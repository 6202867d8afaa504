"""Metrics on routing traces. Each is a function that returns a table: a frozen dataclass of arrays.

load            how evenly experts are used
change          overlap of passes, saturation, churn
coactivation    who is chosen with whom
specialisation  domains and words, with nulls
information     mutual information about domains and words
consistency     repeats, runs and drift along a text
confidence      weights, entropy, margins
working_set     distinct experts of some tokens in a row
similarity      experts' weights and outputs (needs torch)
experts         one row per expert
vocabulary      the tokens that stand out for each expert
neighbours      the co-activation graph
sample          some texts with the routing of each token
compare         two traces side by side
inspection      all that a report shows
router          gradient noise, and inputs that can be told apart
intervals       intervals over documents
distributions   quantiles and bounds, without scipy
verdicts        what figures say in words, each with its null

`analyse_trace` makes all of those that one trace gives. Every docstring has the definition and its source;
[l] is one value per MoE layer; E experts, K of them a token, T tokens.
"""

from moeworks.analyse.summary import Analysis, analyse_trace

__all__ = ["Analysis", "analyse_trace"]
