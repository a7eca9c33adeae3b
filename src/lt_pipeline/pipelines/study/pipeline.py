"""The DAG of a study: train its arms -> summarise -> draw, and put papers beside them."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from lt_pipeline.pipelines.study.nodes import train_arms
from lt_pipeline.pipelines.study.results import draw, summarise, tabulate

# Their parameters are in conf/base/parameters_studies.yml, by the same names.
STUDIES = (
    "dbm_combinations",
    "dbm_components",
    "dbm_K",
    "dbm_tau",
    "dbm_separability",
    "more_baselines",
    "more_overhead",
    "more_schedules",
    "more_experts",
    "more_parts",
    "more_discrepancy",
    "more_amplitude",
    "more_rank",
    "dqroute_modules",
    "dqroute_alpha",
    "dqroute_ood",
    "dqroute_baselines",
    "dqroute_ratios",
    "dqroute_difficulty",
    "darl_baselines",
    "darl_outliers",
    "darl_parts",
    "darl_prior",
    "darl_ambiguity",
    "darl_alpha",
    "darl_tau",
    "decoupled",
    "btm_baselines",
    "btm_merging",
    "btm_sizes",
    "btm_where",
    "btm_fc",
    "btm_gml",
)
# The papers' tables that a study is of, by another name of its pipeline (docs/compare.md has all).
TABLES = {
    "table_more_1": "more_baselines",
    "table_more_3": "more_overhead",
    "table_more_5": "more_schedules",
    "table_more_8": "more_experts",
    "table_more_11": "more_parts",
    "table_dbm_2": "dbm_combinations",
    "table_dbm_5": "dbm_components",
    "table_dbm_6": "dbm_separability",
    "table_dqroute_1": "dqroute_baselines",
    "table_dqroute_2": "dqroute_ratios",
    "table_dqroute_5": "dqroute_difficulty",
    "table_dqroute_6": "dqroute_ood",
    "table_darl_1": "darl_baselines",
    "table_darl_2": "darl_baselines",
    "table_darl_3": "darl_outliers",
    "table_darl_4": "darl_outliers",
    "table_darl_5": "darl_parts",
    "table_btm_2": "btm_baselines",
    "table_btm_6": "btm_merging",
    "table_btm_7": "btm_sizes",
    "table_btm_8": "btm_where",
    "table_btm_9": "btm_gml",
}
SETS = ("train_set", "validation_set", "test_set", "auxiliary_set")


def create_pipeline(study: str) -> Pipeline:
    """Return the pipeline of ``study``, in a namespace of its name."""
    return Pipeline(
        [
            Node(
                train_arms(study),
                inputs=["parameters", "data_card", *SETS, "raw_folder", "finished_arms"],
                outputs="runs",
                name="train_arms",
            ),
            Node(
                summarise(study),
                inputs=["parameters", "runs"],
                outputs=["summary", "arms"],
                name="summarise",
            ),
            Node(
                tabulate(study),
                inputs=["parameters", "data_card", "summary", "papers"],
                outputs=["standing", "markdown"],
                name="tabulate",
            ),
            Node(
                draw(study),
                inputs=["parameters", "data_card", "summary"],
                outputs="figures",
                name="draw",
            ),
        ],
        namespace=study,
        inputs={*SETS, "data_card", "raw_folder", "finished_arms", "papers"},
        parameters={"parameters"},
    )
