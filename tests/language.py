"""The project's glossary: words that its prose does not use, and what to write instead. Patterns ignore case."""

BANNED: list[tuple[str, str]] = [
    # the field's own terms
    (r"(?<!model[\s-])\bcards?\b", "GPU"),
    (r"(?<!image\s)\bprocessors?\b(?! config)", "CPU"),
    (r"\bmixtures?\b(?! of experts)(?!-of-experts)", "mixture of experts, MoE"),
    (r"\blearn(ing)? pace\b", "learning-rate schedule"),
    (r"\bfirst choices?\b", "top token"),
    (r"\bmemory ladder\b|\bthe ladder\b|\brungs?\b", "out-of-memory fallback"),
    (r"\bstrangers?\b", "third-party"),
    (r"\bcrowds?\b", "many clients at once"),
    # false friends and calques
    (r"\banew\b", "again"),
    (r"\b(goes|go|went|going) on\b(?! to)(?! (a|the) (GPU|CPU))", "continues"),
    (r"\b(is|are|was|were) said\b", "name who says it, or use the active voice"),
    (r"\b(is|are|was|were) asked of\b", "is required of, must"),
    (r"\b(is|are|was|were) told by\b", "is inferred from"),
    (r"\b(is|are|was|were) called as\b", "is named after"),
    (r"\b(give|gives|gave|given) back\b", "return, release"),
    (r"\bat hand\b", "available"),
    (r"\bwhat (came|comes|has come) of (it|them|this)\b", "the result"),
    (r"\bmeasured beside\b", "measured alongside"),
    (r"\bwritten after (its|their|the) source\b", "modelled on the source"),
    (r"\bdone again\b", "repeated, retried"),
    (r"\b(that|which|it|this|who) (is|are) no (?!longer\b|more\b|less\b|different\b|better\b|worse\b)", "is not a"),
    (r"\(but (of|under|for|in|with|the|a|on|at)\b", "except"),
    (r"\bin (its|their|the) user's words\b", "in the user's terms"),
]
