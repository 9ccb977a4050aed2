"""The faults that were put in on purpose: how, what is promised, and the tests that hold the promise."""

from __future__ import annotations

from dataclasses import dataclass

from tests.faults.server import LASTING, PASSING


@dataclass(frozen=True)
class Fault:
    """One row of the page."""

    name: str
    how: str
    promise: str
    tests: tuple[str, ...]
    """pytest's ids, with or without the parameter in brackets"""


ENDPOINT = "tests/faults/test_endpoint.py::"
DAMAGE = "tests/faults/test_damage.py::"
STOPS = "tests/faults/test_stops.py::"
RAY = "tests/faults/test_ray.py::"
PIPELINE = "tests/test_pipeline.py::"
LEDGER = "tests/test_ledger.py::"
OPENAI = "tests/test_engine_openai.py::"
VLLM = "tests/test_engine_vllm.py::"
KILLED = "tests/test_real_engines.py::test_killed_with_vllm_every_stored_reply_is_reused_and_all_is_accounted_for"
NODES = "tests/test_nodes.py::"

PROCESSES = (
    Fault(
        "driver, kill -9 in each stage",
        "the process kills itself as it reads prompts, starts engines, begins, ends its fifth prompt, writes the "
        "exports, and before the manifest",
        "the same command has the same rows and files; what was stored is paid once; no manifest before the end",
        (f"{STOPS}test_killed_in_each_stage_the_same_command_has_the_same_rows",),
    ),
    Fault(
        "driver, kill -9 at any moment",
        "20 kills at random moments; a kill in the middle of a run with vLLM",
        "the same rows and files, no call paid twice; with vLLM, every stored reply stands and all is accounted for",
        (
            f"{PIPELINE}test_killed_at_random_moments_the_same_command_gives_the_same_rows",
            KILLED,
        ),
    ),
    Fault(
        "SIGTERM, Ctrl-C, and each of them twice",
        "SIGTERM or SIGINT to `tenet generate` with prompts in flight; SIGINT twice with calls that take a minute",
        "once: the prompts in flight end, state stopped, exit 130, and how to go on is said; twice: at once, without a "
        "traceback; the same command has the same rows",
        (
            f"{STOPS}test_sigterm_stops_between_prompts_and_says_how_to_go_on",
            f"{STOPS}test_sigterm_stops_as_cleanly_with_ray_in_the_process",
            f"{STOPS}test_a_second_ctrl_c_stops_at_once",
            f"{PIPELINE}test_ctrl_c_stops_cleanly_and_says_how_to_go_on",
        ),
    ),
    Fault(
        "replica killed, as the OOM killer does",
        "SIGKILL to vLLM's engine process in the middle of 400 calls; an actor that exits",
        "a new one takes its place and is asked what the old one owed; no answer is lost",
        (
            KILLED,
            f"{VLLM}test_a_dead_replica_is_replaced_and_its_work_is_sent_again",
        ),
    ),
    Fault(
        "a question that kills every replica",
        "an actor exits whenever it holds the question",
        "that question is given up with the reason, its neighbours are served",
        (f"{VLLM}test_what_kills_every_replica_is_given_up_and_its_neighbours_are_served",),
    ),
    Fault(
        "no replica left",
        "an actor exits, and its successor cannot start",
        "everyone who waits is told why",
        (f"{VLLM}test_when_no_replica_is_left_everyone_is_told_why",),
    ),
    Fault(
        "engine hangs",
        "the processes of a node stand still (SIGSTOP)",
        "no sign of life for `hang_s`: what they held is asked elsewhere; the manifest tells",
        (f"{NODES}test_node_cut_off",),
    ),
    Fault(
        "owner killed, vLLM's processes left alive",
        "kill -9 of the driver; kill -9 of an owner whose watchdog is gone too",
        "a watchdog ends EngineCore and Worker within seconds; what outlives it is ended at the next start",
        (
            KILLED,
            "tests/faults/test_left_behind.py::"
            "test_orphans_of_a_killed_owner_are_ended_at_the_next_start_and_others_are_left_alone",
        ),
    ),
    Fault(
        "error as a GPU raises it",
        "the engine raises `CUDA error: an illegal memory access` for one question",
        "that call is a fault with these words, its neighbours are served",
        (f"{RAY}test_a_full_object_store_and_an_error_of_a_gpu_lose_no_other_answer",),
    ),
    Fault(
        "object store full",
        "210 MB held in a store of 200 MB, then 12 MB of questions and answers",
        "every answer comes",
        (f"{RAY}test_a_full_object_store_and_an_error_of_a_gpu_lose_no_other_answer",),
    ),
    Fault(
        "Ray's head goes and comes back",
        "kill -9 of the GCS in mid-run, then a new head",
        "the run ends; the same command on the new head has the same rows",
        (f"{RAY}test_a_head_that_goes_ends_the_run_and_a_new_head_goes_on_with_it",),
    ),
    Fault(
        "node lost",
        "a replica, then every process of a node killed in mid-run, on three nodes",
        "the others take over; no row lost or doubled; the manifest tells",
        (f"{NODES}test_node_killed",),
    ),
)
FILES = (
    Fault(
        "disk full",
        "files may grow to 40, 150 or 400 KB (the run), 600 KB (the ledger); /dev/full under an export",
        "exit 3 with what to do; what was acknowledged stays; the same command goes on",
        (
            f"{PIPELINE}test_a_full_disk_stops_the_run_in_plain_words_and_the_same_command_goes_on",
            f"{PIPELINE}test_a_full_disk_at_the_exports_loses_no_row",
            f"{LEDGER}test_full_disk_keeps_what_was_acknowledged_and_says_what_to_do",
            f"{LEDGER}test_full_disk_stops_a_run_between_two_chains",
        ),
    ),
    Fault(
        "ledger locked",
        "another process holds a write lock on calls.sqlite",
        "waited for; after 60 s the file and the reason are said; the same command goes on",
        (f"{DAMAGE}test_a_ledger_held_by_another_process_is_waited_for_and_then_named",),
    ),
    Fault(
        "run folder in use",
        "a second start of the run while the first goes on",
        "refused with the other's process id; a dead one holds nothing",
        (f"{LEDGER}test_a_run_has_one_writer_and_kill_9_frees_it_with_whole_chains",),
    ),
    Fault(
        "ledger truncated",
        "rows.sqlite or calls.sqlite cut to nothing, to 5,000 bytes, and by 3,000 bytes",
        "refused with file and way out, left as it is; moved away, what it held is made anew",
        (f"{DAMAGE}test_a_truncated_file_is_refused_and_made_anew_when_it_is_moved_away",),
    ),
    Fault(
        "ledger damaged",
        "a bit, 64 bytes or a page changed, or the end cut off, at 160 drawn places; a file that is no database",
        "no damaged row, reply or sum is ever taken for a good one: refused with file and way out. Damage to an index "
        "may hide a reply, which is then asked anew",
        (
            f"{DAMAGE}test_no_damaged_row_or_reply_is_ever_taken_for_a_good_one",
            f"{DAMAGE}test_a_run_on_damaged_files_ends_in_words_or_with_the_same_rows",
            f"{LEDGER}test_damaged_or_foreign_files_are_refused",
        ),
    ),
    Fault(
        "write-ahead log damaged after a kill",
        "the second half of both -wal files zeroed after kill -9",
        "whole commits are gone, never half of one; they are made again, and the rows are the same",
        (f"{DAMAGE}test_a_log_that_a_kill_left_and_a_disk_damaged_loses_whole_commits_and_they_are_made_again",),
    ),
    Fault(
        "clock jumps",
        "the wall clock goes back an hour or on a day at every look, while calls are refused with Retry-After",
        "waits and rows are as ever",
        (f"{ENDPOINT}test_a_clock_that_jumps_by_hours_changes_neither_waits_nor_rows",),
    ),
)
_PASSES = f"{ENDPOINT}test_a_fault_that_passes_leaves_no_trace_in_the_rows"
_STAYS = f"{ENDPOINT}test_a_fault_that_stays_drops_what_it_strikes_with_the_reason"
_REFUSED = f"{ENDPOINT}test_a_refusal_stops_the_run_and_says_the_way_out"
_WORDS = "the run ends and says host and way out; nothing is lost; once it is mended, the same rows"


def _dropped(reason: tuple[str, str, str], passes: bool) -> str:
    unit, stage, why = reason
    then = "a later start asks again and has the rows of a calm run" if passes else "a later start asks nothing again"
    return f'each such {unit} is dropped at {stage} with "{why}", all others are served; {then}'


ENDPOINTS = (
    *(
        Fault(f.name, f.how, "tried again; the rows and files of a calm run", (f"{_PASSES}[{f.name}]",))
        for f in PASSING
    ),
    Fault(
        "429 with a date, a wrong clock",
        "Retry-After as a date by a server's clock that is years behind",
        "waits as long as the server means",
        (
            f"{OPENAI}test_retry_after_as_a_date_is_honoured",
            f"{OPENAI}test_retry_after_as_a_date_is_read_by_the_servers_clock",
        ),
    ),
    *(Fault(f.name, f.how, _dropped(f.reason, f.passes), (f"{_STAYS}[{f.name}]",)) for f in LASTING),
    *(
        Fault(name, f"after 40 good answers: {how}", _WORDS, (f"{_REFUSED}[{name}]",))
        for name, how in (
            ("401", "HTTP 401"),
            ("403", "HTTP 403"),
            ("404", "HTTP 404, no such model"),
            ("quota", "HTTP 429, insufficient_quota"),
            ("Retry-After of a day", "HTTP 429, come back tomorrow"),
        )
    ),
    Fault(
        "endpoint down for good",
        "after 150 good answers: HTTP 500, HTTP 429, or closed connections",
        "`max_failures` ends the run before all is dropped; the next start has the same rows",
        (f"{ENDPOINT}test_an_endpoint_that_stays_down_stops_the_run_before_it_drops_all",),
    ),
    Fault(
        "connection refused",
        "no server at the address",
        "the run ends before it begins, with host and reason",
        (f"{ENDPOINT}test_a_refused_connection_is_said_with_host_and_reason",),
    ),
    Fault(
        "DNS failure",
        "the resolver knows no such name",
        "the run ends before it begins, with host and reason",
        (f"{ENDPOINT}test_a_name_that_no_server_has_is_said_with_the_reason",),
    ),
    Fault(
        "TLS failure",
        "a certificate that nobody vouches for; a server without TLS behind https",
        "the run ends before it begins, with the reason; no prompt is sent",
        (f"{ENDPOINT}test_a_server_that_cannot_prove_who_it_is_gets_no_prompt",),
    ),
    Fault(
        "redirect elsewhere",
        "HTTP 307 to another host",
        "never followed: the other host sees neither prompt nor key",
        (f"{ENDPOINT}test_a_redirect_to_another_host_gets_neither_prompt_nor_key",),
    ),
    Fault(
        "model swapped in mid-run",
        "from the 41st answer on, `model` or `system_fingerprint` is another",
        "the run ends and names both; no reply of the new one is kept, and the next start is told the same; `version` "
        "asks anew, `pinned: model` lets alternating backends through",
        (
            f"{ENDPOINT}test_a_model_swapped_in_mid_run_is_said_and_not_mixed_in",
            f"{ENDPOINT}test_backends_that_alternate_are_let_through_where_the_recipe_says_so",
        ),
    ),
)
GROUPS = {"Processes, Ray and nodes": PROCESSES, "Disks, files and clocks": FILES, "Endpoints": ENDPOINTS}
