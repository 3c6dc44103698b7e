"""DNN, MC-MLCC and TokenMixer-Large, and their tables, on synthetic clicks."""

from scaling import ladders
from scaling.study import Study

# Ids of the tables that the ladder of hash sizes shrinks.
IDS = {"user_id": 2_000, "item_id": 1_200, "site": 20_000}


def get_study() -> Study:
    return Study(
        name="synthetic",
        title="Scaling of ranking models on synthetic clicks",
        config="scaling/studies/synthetic/experiment.py:{model}",
        task="ctr",
        ladders=(
            ladders.dnn_width((4, 16, 64, 256, 768)),
            ladders.mlcc_channels((1, 2, 4, 8, 16)),
            ladders.mixer_width((8, 16, 32, 64, 128)),
            ladders.dnn_depth((1, 2, 3, 4, 6), width=64),
            ladders.table_rows("dnn", IDS, ("1/64", "1/16", "1/4", "1", "4")),
            ladders.table_dim("dnn", (2, 4, 8, 16, 32)),
        ),
        note=(
            "262,144 synthetic rows in one pass, evaluated on the 40,000 rows that "
            "follow them in time."
        ),
    )
