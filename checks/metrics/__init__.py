"""One module for each family of metrics in METRICS.md; each turns outcomes into `Score` records and knows no editor."""

#: Codes that the `metric` field of a score may have.
METRIC_CODES = (
    "SR", "GR", "ES", "token_accuracy",
    "SRR", "GRR", "ESR",
    "locality", "portability", "obsolete",
    "DD", "perplexity_ratio", "KL",
    "fluency", "failure_mode", "efficiency", "not_counted", "served_agreement",
    "ability", "published",
)  # fmt: skip
#: Asked in the benchmark alone, so that no report of a night has them.
BENCHMARK_ONLY = ("ability", "published")
