"""The DAG of a study: train its arms -> summarise -> draw."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from lt_pipeline.pipelines.study.nodes import draw, summarise, train_arms

# Their parameters are in conf/base/parameters_studies.yml, by the same names.
STUDIES = (
    "dbm_combinations",
    "dbm_components",
    "dbm_K",
    "dbm_tau",
    "dqroute_modules",
    "dqroute_alpha",
    "dqroute_ood",
    "darl_parts",
    "darl_ambiguity",
    "darl_alpha",
    "darl_tau",
    "decoupled",
    "btm_merging",
    "btm_sizes",
    "btm_where",
    "btm_gml",
)
# The papers' tables that a study is of, by another name of its pipeline.
TABLES = {
    "table_dbm_2": "dbm_combinations",
    "table_dbm_5": "dbm_components",
    "table_dqroute_6": "dqroute_ood",
    "table_darl_5": "darl_parts",
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
                inputs=["parameters", "data_card", *SETS, "raw_folder", "progress"],
                outputs="runs",
                name="train_arms",
            ),
            Node(summarise, inputs="runs", outputs=["summary", "arms"], name="summarise"),
            Node(
                draw(study),
                inputs=["parameters", "data_card", "summary"],
                outputs="figures",
                name="draw",
            ),
        ],
        namespace=study,
        inputs={*SETS, "data_card", "raw_folder"},
        parameters={"parameters"},
    )
