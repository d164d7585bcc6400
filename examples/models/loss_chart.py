"""Draws what train.py logged of one or more models (gnuplot is needed):

    python3 loss_chart.py loss.svg llama/log.jsonl llama-sink/log.jsonl mpt/log.jsonl
"""

import json
import pathlib
import subprocess
import sys

COLORS = ["#1b8a5a", "#7b4fa3", "#b07d2b", "#3f6fb0", "#c1442e", "#777777"]
STYLE = """
set terminal svg size 1100,430 dynamic enhanced font 'sans-serif,14' background '#ffffff'
set border 3 linecolor '#555555'
set tics nomirror textcolor '#333333'
set grid linecolor '#dddddd' linewidth 1 dashtype 1
set xlabel 'steps'
set key top right
"""


def panel(name, title, value_of, logs):
    data, plots = "", []
    for number, (model, lines) in enumerate(logs.items()):
        points = [f"{line['step']} {value_of(line)}" for line in lines]
        data += f"${name}{number} << end\n" + "\n".join(points) + "\nend\n"
        plots.append(f"${name}{number} with lines linewidth 2 linecolor '{COLORS[number]}' title '{model}'")
    return f"{data}set title '{title}'\nplot {', '.join(plots)}\n"


def main(picture, paths):
    logs = {str(path.parent): [json.loads(line) for line in path.read_text().splitlines()] for path in paths}
    script = (STYLE + f"set output '{picture}'\nset multiplot layout 1,2\nset yrange [1.5:4]\n"
              + panel("bits", "bits a byte of held-out text", lambda line: line["held_out_bits"], logs)
              + "set yrange [0:1]\n"
              + panel("bos", "weight of BOS, largest of the layers", lambda line: max(line["bos_weight"]), logs)
              + "unset multiplot\n")
    subprocess.run(["gnuplot", "-"], input=script, text=True, check=True)


if __name__ == "__main__":
    main(sys.argv[1], [pathlib.Path(path) for path in sys.argv[2:]])
