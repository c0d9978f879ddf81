"""One row of each published benchmark, of our own making: the shape is theirs, the content is not."""

from __future__ import annotations

from typing import Any

ZSRE: dict[str, Any] = {
    "subject": "Ada Quill",
    "src": "Which town was Ada Quill born in?",
    "pred": "Noville",
    "rephrase": "Where was Ada Quill born?",
    "alt": "Eastholm",
    "answers": ["Westholm", "West Holm"],
    "loc": "nq question: who wrote the red ledger",
    "loc_ans": "Ben Ash",
    "cond": "Westholm >> Eastholm || Which town was Ada Quill born in?",
}
COUNTERFACT: dict[str, Any] = {
    "case_id": 0,
    "pararel_idx": 7,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "relation_id": "P103",
        "subject": "Ada Quill",
        "target_new": {"str": "Norn", "id": "Q36708"},
        "target_true": {"str": "Manx", "id": "Q12175"},
    },
    "paraphrase_prompts": ["Rain fell. Ada Quill spoke", "Ada Quill grew up speaking"],
    "neighborhood_prompts": ["The mother tongue of Bo Reed is", "Bo Reed is a native speaker of"],
    "attribute_prompts": ["The mother tongue of Cy Holt is"],
    "generation_prompts": ["Ada Quill lives in"],
}
FLAT: dict[str, Any] = {
    "case_id": 3,
    "prompt": "The mother tongue of Ada Quill is",
    "target_new": "Norn",
    "subject": "Ada Quill",
    "ground_truth": "Manx",
    "rephrase_prompt": "Ada Quill grew up speaking",
    "locality_prompt": "The mother tongue of Bo Reed is",
    "locality_ground_truth": "Manx",
}
SLICED: dict[str, Any] = {
    "subject": "Ada Quill",
    "target_new": "Eastholm",
    "prompt": "Which town was Ada Quill born in?",
    "ground_truth": ["Westholm"],
    "rephrase_prompt": "Where was Ada Quill born?",
    "cond": "Westholm >> Eastholm",
    "locality": {"Relation_Specificity": [{"prompt": "Ada Quill's trade", "ground_truth": [["clerk", "scribe"]]}]},
    "portability": {
        "Reasoning": [{"prompt": "In which county was Ada Quill born?", "ground_truth": "Eastshire"}],
        "Subject_Aliasing": [{"prompt": "Which town was A. Quill born in?", "ground_truth": ["Eastholm"]}],
        "Logical_Generalization": [],
    },
}
MQUAKE: dict[str, Any] = {
    "case_id": 1,
    "requested_rewrite": [
        {
            "prompt": "{} is a citizen of",
            "relation_id": "P27",
            "target_new": {"str": "Norland", "id": "Q11"},
            "target_true": {"str": "Sudland", "id": "Q12"},
            "subject": "Ada Quill",
            "question": "Of what is Ada Quill a citizen?",
        },
        {
            "prompt": "The capital of {} is",
            "relation_id": "P36",
            "target_new": {"str": "Eastholm", "id": "Q13"},
            "target_true": {"str": "Northolm", "id": "Q14"},
            "subject": "Norland",
            "question": "What is the capital of Norland?",
        },
    ],
    "questions": ["What is the capital of the land of the head of Inkworks?", "Which capital has the head of Inkworks?"],
    "answer": "Southolm",
    "answer_alias": [],
    "new_answer": "Eastholm",
    "new_answer_alias": ["East Holm"],
    "new_single_hops": [
        {
            "question": "Who heads Inkworks?",
            "cloze": "Inkworks is headed by",
            "answer": "Ada Quill",
            "answer_alias": ["A. Quill"],
        },
        {
            "question": "Of what is Ada Quill a citizen?",
            "cloze": "Ada Quill is a citizen of",
            "answer": "Norland",
            "answer_alias": [],
        },
        {
            "question": "What is the capital of Norland?",
            "cloze": "The capital of Norland is",
            "answer": "Eastholm",
            "answer_alias": [],
        },
    ],
    "orig": {"edit_triples": [["Q1", "P27", "Q11"]]},
}
REMASTERED: dict[str, Any] = {
    **{name: MQUAKE[name] for name in ("case_id", "questions", "new_answer", "new_answer_alias")},
    "requested_rewrite": [
        {
            "prompt": "{} is a citizen of",
            "relation_id": "P27",
            "target_new_str": "Norland",
            "target_new_id": "Q11",
            "target_true_str": "Sudland",
            "target_true_id": "Q12",
            "subject": "Ada Quill",
            "question": "Ada Quill's land?",
        },
    ],
    "split": {"1000": ["edited"]},
}


def ripple_query(prompt: str, value: str, **more: Any) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "answers": [{"value": value, "aliases": [f"{value} town"]}],
        "query_type": "regular",
        "subject_id": "Q1",
        "relation": "MOTHER",
        "target_ids": ["Q5"],
        "phrase": None,
    } | more


RIPPLE: dict[str, Any] = {
    "example_type": "popular",
    "edit": {
        "prompt": "The name of the country of citizenship of Ada of Quill is Norland.",
        "subject_id": "Q1",
        "relation": "COUNTRY_OF_CITIZENSHIP",
        "target_id": "Q11",
        "previous_fact": {
            "prompt": "The name of the country of citizenship of Ada of Quill is Nor.",
            "subject_id": "Q1",
            "relation": "COUNTRY_OF_CITIZENSHIP",
            "target_id": "Q12",
        },
    },
    "Relation_Specificity": [
        {
            "test_queries": [ripple_query("The name of the mother of Ada of Quill is", "Una")],
            "test_condition": "OR",
            "condition_queries": [],
        }
    ],
    "Logical_Generalization": [],
    "Subject_Aliasing": [{"test_queries": [ripple_query("The name of the country of A.Q. is", "Norland")]}],
    "Compositionality_I": [{"test_queries": [ripple_query("The capital of the land of Ada of Quill is", "Eastholm")]}],
    "Compositionality_II": [],
    "Forgetfulness": [{"test_queries": [ripple_query("Ada of Quill holds", "Nor", answers=[])]}],
}
WIKIBIGEDIT: dict[str, Any] = {
    "tag": "Q1_P19",
    "subject": "Ada Quill",
    "update": "Where was Ada Quill born?",
    "rephrase": "What is Ada Quill's birthplace?",
    "ans": "Eastholm",
    "personas": "Tell me, pal, where did Ada Quill come into the world?",
    "loc": "Where was Bo Reed born?",
    "loc_ans": "Noville",
    "mhop": "In which county was Ada Quill born?",
    "mhop_ans": "Eastshire",
}
WIKIFACTDIFF: dict[str, Any] = {
    "subject": {"id": "Q1", "label": "Ada Quill", "description": "clerk"},
    "relation": {"id": "P108", "label": "employer"},
    "objects": [
        {"id": "Q21", "label": "Inkworks", "decision": "new"},
        {"id": "Q22", "label": "Penhouse", "decision": "obsolete"},
    ],
    "is_replace": True,
    "update_prompt": "The employer of Ada Quill is ____",
    "generalization_prompts": ["Ada Quill works for ____", "Ada Quill is employed by ____."],
    "neighborhood": [
        {
            "subject": {"id": "Q2", "label": "Bo Reed"},
            "relation": {"id": "P108"},
            "dist": 0.2,
            "objects": [
                {"prompt": "The employer of Bo Reed is ____", "object": {"id": "Q23", "label": "Millco"}},
                {"prompt": "The employer of Bo Reed is ____", "object": {"id": "Q24", "label": "Barnco"}},
            ],
        }
    ],
}
QAEDIT: dict[str, Any] = {
    "prompt": "Where was Ada Quill born?",
    "target": "Eastholm",
    "subject": "Ada Quill",
    "rephrase": "What is Ada Quill's birthplace?",
    "locality": [{"loc": "Where was Bo Reed born?", "loc_ans": "Noville"}],
}

#: row, format, (kind, target, old answer), number of rephrases, kinds of probes.
SHAPES: dict[str, tuple[dict[str, Any], str, tuple[str, str, str | None], int, list[str]]] = {
    "zsre_mend_eval": (ZSRE, "zsre", ("modify", "Eastholm", "Westholm"), 1, ["unrelated"]),
    "counterfact": (COUNTERFACT, "counterfact", ("modify", "Norn", "Manx"), 2, ["neighbourhood"] * 3),
    "counterfact-edit": (FLAT, "easyedit", ("modify", "Norn", "Manx"), 1, ["neighbourhood"]),
    "ZsRE-test-all": (SLICED, "easyedit", ("modify", "Eastholm", "Westholm"), 1, ["relation_specificity", "one_hop", "alias"]),
    "MQuAKE-CF": (MQUAKE, "mquake", ("modify", "Norland", "Sudland"), 1, ["one_hop", "one_hop", "unrelated"]),
    "MQuAKE-Remastered": (REMASTERED, "mquake", ("modify", "Norland", "Sudland"), 1, ["one_hop", "one_hop"]),
    "RippleEdits": (RIPPLE, "ripple", ("modify", "Norland", "Nor"), 0, ["relation_specificity", "alias", "one_hop"]),
    "WikiBigEdit": (WIKIBIGEDIT, "wikibigedit", ("insert", "Eastholm", None), 1, ["neighbourhood", "one_hop", "rephrase"]),
    "WikiFactDiff": (WIKIFACTDIFF, "wikifactdiff", ("modify", "Inkworks", "Penhouse"), 2, ["neighbourhood"]),
    "QAEdit": (QAEDIT, "qaedit", ("insert", "Eastholm", None), 1, ["unrelated"]),
}
