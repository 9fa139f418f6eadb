# The tables and figures of the paper:   uv run snakemake reports --cores 2
# What is there, what would be made and what it costs is said first, also by a dry run (-n).
# Settings are fields of rrn.experiments.matrix.Matrix or of the configuration:   --config matrix=paper data_root=/data preset=fast
# On a cluster: docs/cluster.md. What holds for every call (resume, keep going) is in profiles/default/config.yaml.
import json, sys
from rrn.common.core import RRNError
from rrn.experiments.matrix import from_root, given_matrix, gpu_places, unlock_if_alone
from rrn.experiments.workflow import drop_stale_stamps, goals, overview, pack_settings, read_settings

try:
    SETTINGS, HOW = read_settings(config, workflow.config_settings.config_args)
    MATRIX = given_matrix(**SETTINGS)
    if workflow.is_main_process:
        unlock_if_alone('.snakemake')
        drop_stale_stamps(MATRIX)
        print(overview(MATRIX, HOW['estimate']), file=sys.stderr, flush=True)
        # a shell reads the commands of a cluster's jobs
        workflow.config_settings.config_args = [pack_settings(SETTINGS | HOW)]
    GOALS = goals(MATRIX)
except RRNError as e: raise WorkflowError(str(e))
PLACES, FOLDER = gpu_places(HOW['runs_per_gpu']), from_root(MATRIX.run('').folder)
if PLACES and workflow.local_exec: workflow.global_resources.setdefault('gpu', PLACES)

PYTHON, GIVEN, OWN = sys.executable, json.dumps(SETTINGS | HOW), json.dumps(SETTINGS)
wildcard_constraints: run='[A-Za-z0-9][A-Za-z0-9._+-]*'
localrules: reports, runs, trained

rule reports:
    input: GOALS.tables + GOALS.figures[:1] + GOALS.answer[:1] + GOALS.report + GOALS.wanted

rule runs:
    input: GOALS.wanted

rule trained:
    input: GOALS.trained

rule tables:
    input: GOALS.wanted
    output: GOALS.tables
    params: content=GOALS.content, runs=[c.run for c in MATRIX.cells()]
    shell: '{PYTHON:q} -m rrn.experiments.matrix tables --settings={OWN:q}'

rule answer:
    output: GOALS.answer or 'no-answer'
    params: content=GOALS.content
    shell: '{PYTHON:q} -m rrn.experiments.matrix answer'

# Tables lie in a fresh clone in any order of time: what their records are says whether the report is of them. Sentences in
# README.md come from the report's tables, and are written into it.
rule report:
    input: ancient(GOALS.tables + GOALS.answer)
    output: GOALS.report or 'no-report'
    params: content=GOALS.content
    shell: '{PYTHON:q} -m rrn.experiments.paper_report pages report crate && '
           '{PYTHON:q} -m papermill nbs/readme.ipynb out-readme.ipynb --no-progress-bar'

rule figures:
    input: GOALS.drawn_from
    output: GOALS.figures
    shell: '{PYTHON:q} -m rrn.experiments.matrix figures --settings={OWN:q}'

# A stamp is all that a job declares: Snakemake removes what a failed job has declared, and weights must survive.
rule train:
    output: FOLDER + '/{run}/train.done'
    resources: gpu=HOW['gpus_per_run']
    log: FOLDER + '/{run}/train.log'
    shell: '{PYTHON:q} -m rrn.experiments.matrix train {wildcards.run:q} --settings={GIVEN:q} --stamp={output:q} > {log:q} 2>&1'

rule evaluate:
    input: ancient(FOLDER + '/{run}/train.done')
    output: FOLDER + '/{run}/evaluate.done'
    resources: gpu=HOW['gpus_per_run']
    log: FOLDER + '/{run}/evaluate.log'
    shell: '{PYTHON:q} -m rrn.experiments.matrix evaluate {wildcards.run:q} --settings={GIVEN:q} --stamp={output:q} > {log:q} 2>&1'
