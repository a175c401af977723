#!/usr/bin/env bash
# Starts a run again until it is finished, on a machine without a scheduler. Name the run folder, then the command:
#
#   scripts/launch/loop.sh runs/pythia-410m-rewarm composer -n 8 -m rewarm train yamls/pythia-410m/rewarm.yaml
#
# To count the GPUs anew at each start, let a shell work it out and then become the launcher:
#
#   scripts/launch/loop.sh runs/x bash -c 'exec composer -n "$(rewarm ranks run.yaml --available 7)" -m rewarm train run.yaml'
#
# The command's code      what follows
#   0, 2                  the end: finished, or something that only you can put right
#   75                    "start me again": at once
#   1, 129 and above      a lost rank, a kill, a crash: again, after BACKOFF_SECONDS, then twice as long each time up to 5 minutes
#   anything else         the end, with that code: a bug
# A save between two starts is progress, and the waiting begins anew. After RESTARTS starts without progress the loop ends with
# the command's code; a second 75 without progress waits like a crash, or a notice that stands would spin the loop.
# SIGTERM, SIGINT or SIGHUP to the loop: the command is told to go, and the loop leaves with 75 once it has.
#
# Change: BACKOFF_SECONDS (10), RESTARTS (8). For a run in a bucket name the folder on this machine that it works in, as a pattern
# between quotes: "/tmp/rewarm-$(id -u)/RUN_NAME-*", or below TMPDIR if that is set.
set -uo pipefail

[ $# -ge 2 ] || {
    echo "usage: $0 RUN_FOLDER COMMAND [ARGUMENT]..." >&2
    exit 2
}
run_folder=$1
shift
backoff=${BACKOFF_SECONDS:-10} most=${RESTARTS:-8} longest=300

child='' told=''
go() {
    told=1
    # Always SIGTERM: a shell's background command has SIGINT ignored.
    [ -z "$child" ] || kill -TERM "$child" 2>/dev/null
}
trap go TERM INT HUP
trap '' PIPE # whoever reads what is printed may be gone

# shellcheck disable=SC2086 # a pattern may stand for the folder
newest() (IFS='' && cat $run_folder/checkpoints/latest 2>/dev/null)

run() { # a command in the background, ended if the loop is told to go, waited for however often a signal interrupts the waiting
    local code
    "$@" &
    child=$!
    [ -z "$told" ] || kill -TERM "$child" 2>/dev/null
    while :; do
        wait "$child"
        code=$?
        if [ "$code" -le 128 ] || ! kill -0 "$child" 2>/dev/null; then break; fi
    done
    child=''
    return "$code"
}

restarts=0 delay=$backoff
while :; do
    before=$(newest)
    run "$@"
    code=$?
    case $code in
        0 | 2) exit "$code" ;;
        1 | 75) ;;
        *) [ "$code" -gt 128 ] || exit "$code" ;;
    esac
    [ -z "$told" ] || exit 75
    if [ "$(newest)" != "$before" ]; then
        restarts=0 delay=$backoff
    fi
    restarts=$((restarts + 1))
    if [ "$restarts" -gt "$most" ]; then
        echo "loop.sh: exit code $code, and nothing was saved in the last $restarts starts: giving up" >&2
        exit "$code"
    fi
    if [ "$code" -eq 75 ] && [ "$restarts" -eq 1 ]; then
        echo 'loop.sh: exit code 75: starting again' >&2
        continue
    fi
    echo "loop.sh: exit code $code: starting again in $delay s (start $restarts of $most without a save)" >&2
    run sleep "$delay"
    [ -z "$told" ] || exit 75
    delay=$((delay * 2 < longest ? delay * 2 : longest))
done
