# The tables and figures of the paper, from nothing:   uv run snakemake reports --cores 2
# Settings are fields of rrn.matrix.Matrix or of the configuration:   --config matrix=paper data_root=/data preset=fast
# On a cluster: docs/cluster.md. What holds for every call (resume, keep going) is in profiles/default/config.yaml.
import sys
from pathlib import Path
from rrn.core import RRNError, read_json
from rrn.matrix import from_root, given_matrix, gpu_places, keys, outputs, unlock_if_alone, weights_file

SETTINGS = {k: '' if v is None else v for k, v in config.items()}      # `more_seeds=` is nothing, not None
PER_GPU, GPUS_EACH = SETTINGS.pop('runs_per_gpu', 1), SETTINGS.pop('gpus_per_run', 1)    # gpus_per_run=0: for a cluster without GPUs
try:
    MATRIX = given_matrix(**SETTINGS)
    CELLS = MATRIX.cells()
except RRNError as e: raise WorkflowError(str(e))
PYTHON = sys.executable
ARGUMENTS = ' '.join(f"'{k}={v}'" for k, v in dict(SETTINGS, runs_per_gpu=PER_GPU).items())
PARAMETERS = ' '.join(f"-p {k} '{v}'" for k, v in SETTINGS.items())
RUNS = [cell.run for cell in CELLS]
COUNTS = [file for cell in CELLS for file in outputs(MATRIX, cell)]
FOLDER = f'{MATRIX.subfolder}/'.lstrip('/')
TABLES = [f'reports/tables/{FOLDER}table{n}.{kind}' for n in (1, 2) for kind in ('md', 'csv', 'tex')] + [f'reports/tables/{FOLDER}claims.md']
FIGURES = f'reports/figures/{FOLDER}figures.json'

if workflow.is_main_process: unlock_if_alone('.snakemake')
if gpu_places(PER_GPU) and workflow.local_exec: workflow.global_resources.setdefault('gpu', gpu_places(PER_GPU))

# Weights are not in the repository, counts and figures are. So figures ask for weights only where they are missing or show runs of other settings.
FIRST = [weights_file(MATRIX, cell) for cell in CELLS if cell.config.seed == MATRIX.seeds[0]]
DRAWN = Path(FIGURES).exists() and set(read_json(FIGURES)['runs']) <= set(RUNS)

def log_of(cell, step): return from_root(MATRIX.run(cell.run).folder/f'{step}.log')

localrules: reports, runs, trained

rule reports:
    input: TABLES, FIGURES, COUNTS     # counts too: tables that exist do not make Snakemake look for runs of other settings

rule runs:
    input: COUNTS

rule trained:
    input: [weights_file(MATRIX, cell) for cell in CELLS]

rule tables:
    input: COUNTS
    output: TABLES
    params: runs=RUNS
    shell: '{PYTHON} -m papermill nbs/tables.ipynb out-tables-{MATRIX.name}.ipynb --no-progress-bar {PARAMETERS}'

rule figures:
    input: [] if DRAWN else FIRST
    output: FIGURES, [f'reports/figures/{FOLDER}figure{n}.{kind}' for n in (1, 2, 3, 4, 5) for kind in ('png', 'pdf')]
    params: runs=RUNS
    shell: '{PYTHON} -m papermill nbs/figures.ipynb out-figures-{MATRIX.name}.ipynb --no-progress-bar {PARAMETERS}'

for place, cell in enumerate(CELLS):
    rule:
        name: f'train_{cell.run}'
        output: weights_file(MATRIX, cell), outputs(MATRIX, cell, 'train')
        params: run=cell.run
        resources: gpu=GPUS_EACH
        priority: len(CELLS) - place
        log: log_of(cell, 'train')
        shell: '{PYTHON} -m rrn.matrix train {params.run} {ARGUMENTS} > {log} 2>&1'

    if keys(cell, 'evaluate'):
        rule:
            name: f'evaluate_{cell.run}'
            input: ancient(weights_file(MATRIX, cell))
            output: outputs(MATRIX, cell, 'evaluate')
            params: run=cell.run
            resources: gpu=GPUS_EACH
            log: log_of(cell, 'evaluate')
            shell: '{PYTHON} -m rrn.matrix evaluate {params.run} {ARGUMENTS} > {log} 2>&1'
