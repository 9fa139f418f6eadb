# The tables and figures of the paper, from nothing:   uv run snakemake reports --cores 2
# Settings are fields of rrn.matrix.Matrix or of the configuration:   --config matrix=paper data_root=/data preset=fast
from rrn.matrix import given_matrix, keys, outputs, weights_file

SETTINGS = dict(config)
PER_GPU = SETTINGS.pop('runs_per_gpu', 1)
MATRIX = given_matrix(**SETTINGS)
CELLS = MATRIX.cells()
ARGUMENTS = ' '.join(f"'{k}={v}'" for k, v in dict(SETTINGS, runs_per_gpu=PER_GPU).items())
PARAMETERS = ' '.join(f"-p {k} '{v}'" for k, v in SETTINGS.items())
FOLDER = f'{MATRIX.subfolder}/'.lstrip('/')
TABLES = [f'reports/tables/{FOLDER}table{n}.{kind}' for n in (1, 2) for kind in ('md', 'csv', 'tex')] + [f'reports/tables/{FOLDER}claims.md']

localrules: reports, runs, trained, tables, figures

rule reports:
    input: TABLES, f'reports/figures/{FOLDER}figures.json'

rule runs:
    input: [file for cell in CELLS for file in outputs(MATRIX, cell)]

rule trained:
    input: [weights_file(MATRIX, cell) for cell in CELLS]

rule tables:
    input: [file for cell in CELLS for file in outputs(MATRIX, cell)]
    output: TABLES
    shell: 'papermill nbs/tables.ipynb out-tables.ipynb --no-progress-bar {PARAMETERS}'

rule figures:
    input: ancient([weights_file(MATRIX, cell) for cell in CELLS if cell.config.seed == MATRIX.seeds[0]])
    output: f'reports/figures/{FOLDER}figures.json', [f'reports/figures/{FOLDER}figure{n}.{kind}' for n in (1, 2, 3, 4, 5) for kind in ('png', 'pdf')]
    shell: 'papermill nbs/figures.ipynb out-figures.ipynb --no-progress-bar {PARAMETERS}'

# Drawn once, before the runs that share it.
rule scenes:
    output: touch('data/.scenes-drawn')
    shell: 'python -c "from rrn.referit import open_dataset; import rrn.shapes; [open_dataset(n) for n in (\'shapes-unc\', \'shapes-referit\')]"'

for place, cell in enumerate(CELLS):
    rule:
        name: f'train {cell.run}'
        input: ancient(['data/.scenes-drawn'] if cell.config.dataset.startswith('shapes-') else [])
        output: weights_file(MATRIX, cell), outputs(MATRIX, cell, 'train')
        params: run=cell.run
        resources: gpu=1
        priority: len(CELLS) - place
        log: f'reports/runs/{cell.run}/train.log'
        shell: 'python -m rrn.matrix train {params.run} {ARGUMENTS} > {log} 2>&1'

    if keys(cell, 'evaluate'):
        rule:
            name: f'evaluate {cell.run}'
            input: ancient(weights_file(MATRIX, cell))
            output: outputs(MATRIX, cell, 'evaluate')
            params: run=cell.run
            resources: gpu=1
            log: f'reports/runs/{cell.run}/evaluate.log'
            shell: 'python -m rrn.matrix evaluate {params.run} {ARGUMENTS} > {log} 2>&1'
