"""DNN, MC-MLCC and hash sizes on the clicks of KuaiRand-Pure's last two weeks."""

from scaling import ladders
from scaling.study import Study

IDS = {"user": 23_652, "video": 7_429, "author": 5_367}


def get_study() -> Study:
    return Study(
        name="kuairand",
        title="Scaling on the clicks of KuaiRand-Pure",
        config="scaling/studies/kuairand/experiment.py:{model}",
        task="click",
        dataset="kuairand",
        ladders=(
            ladders.dnn_width((4, 16, 64, 256), is_tuned=False),
            ladders.mlcc_channels((1, 2, 4, 8), is_tuned=False),
            ladders.table_rows("dnn", IDS, ("1/64", "1/16", "1/4", "1")),
        ),
        note=(
            "Small data: 154,071 rows in one pass, evaluated on 30,990 of the days after "
            "them. Four sizes a ladder, one learning rate for all of them."
        ),
    )
