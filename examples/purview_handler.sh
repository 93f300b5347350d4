#!/usr/bin/env bash
# Runs a command and emits an audit event of it.
#
#   purview_handler.sh [OPTION..] -- COMMAND [ARGUMENT..]
#   purview_handler.sh [OPTION..] --send-pending
#
# The command is left alone: its arguments, stdin, stdout, stderr, environment and process group are as without us,
# a signal that is sent to us is passed on to it, and its exit code is ours (128 + N when signal N ended it). We
# write to stderr only when an event can be neither sent nor kept, or a kept line is damaged.
#
# The event: `timestamp` is when the command began, `duration_ms` how long it took, `status` is Success for exit code
# 0 and else Failure, `result_signature` is the exit code, `command` the command's name, `args` its arguments with
# one space between them, and `metadata.argv` the command and its arguments one by one.
#   * Every character arrives as it is: quotes, backslashes, `$()`, newlines, other control characters, Unicode.
#     Nothing is expanded or run.
#   * Bytes that are no UTF-8 can't stand in JSON: each becomes the four characters \xHH, and `metadata.argv_base64`
#     then has the exact bytes, each argument followed by a NUL byte.
#   * Of more than 32 KiB, `args` has the first 32 KiB; `metadata` then has `argv_length_bytes` and `argv_sha256`
#     (of the same bytes as above) in place of `argv`.
#   * Arguments go into the audit log as they are. A secret belongs in a file or in the environment.
#
# Sending. The event's line is first appended to the file of pending events (one JSON object a line), then all of that
# file is sent by `audit-consumer emit`, and the lines are removed when Kafka has acknowledged them. So when Kafka is
# away the lines stay, and the next run of this script sends them, or `--send-pending` does (from cron, say). After a
# try that failed none is made for 30 s; what Kafka said stands in FILE.error.
#   * Lines are appended under one lock and sent under another, so none is torn or passed over by handlers that run
#     at once. What is being sent has been moved to FILE.sending first: later lines go to a new FILE.
#   * Killed between the sending and the removal, or when only some of the lines were acknowledged, the same lines
#     are sent again. An event keeps its audit_id and timestamp, so the second one is a counted duplicate in
#     PostgreSQL and nothing is stored twice.
#   * A line that was cut (a full disk, a crash) is not sent: it goes to FILE.damaged, and stderr says so.
#   * Killed by SIGKILL while the command runs, we emit nothing.
#
# Options, and the variables that stand in for them:
#   --actor NAME            who; default: the user's name                     AUDIT_ACTOR
#   --operation NAME        what; default: command.run                        AUDIT_OPERATION
#   --correlation-id UUID   ties events together; default: a new one          AUDIT_CORRELATION_ID
#   --source NAME           federated_source; default: local                  AUDIT_SOURCE
#   --tenant ID             default: the consumer's                           AUDIT_TENANT
#   --topic TOPIC           default: that of `audit-consumer emit`            EMIT_TOPIC
#   --pending FILE          default: ~/.local/state/audit-consumer/pending.jsonl  AUDIT_PENDING
#   --timeout-ms MS         how long Kafka may take; default: 5000            AUDIT_TIMEOUT_MS
# AUDIT_CONSUMER names the binary (default: audit-consumer); KAFKA_BROKERS and its other settings are passed on.
#
# Exit code: the command's; 2 for a wrong option, and then the command was not run. Of --send-pending: 0 when
# nothing waits any more, else 1.
#
# Needs bash 5, flock (util-linux) and the core utilities.
set -u

readonly ARGS_MAX_BYTES=32768
readonly DURATION_MAX_MS=2147483647
readonly RETRY_SECONDS=30
# The lock on the file of pending events is held for an append; who waits longer finds somebody stopped.
readonly LOCK_SECONDS=5
# How a whole line begins and ends. A text inside of it can't end like this, as its quotes are escaped.
readonly LINE_START='{"audit_id":"'
readonly LINE_END='"schema_version":"2.0"}'

say() { printf 'purview_handler: %s\n' "$*" >&2; }
misused() { say "$*; the options stand at the top of $0"; exit 2; }

actor=${AUDIT_ACTOR-}
operation=${AUDIT_OPERATION:-command.run}
correlation_id=${AUDIT_CORRELATION_ID-}
source_name=${AUDIT_SOURCE:-local}
tenant=${AUDIT_TENANT-}
topic=${EMIT_TOPIC-}
pending=${AUDIT_PENDING:-${XDG_STATE_HOME:-${HOME:-/tmp}/.local/state}/audit-consumer/pending.jsonl}
timeout_ms=${AUDIT_TIMEOUT_MS:-5000}
only_pending=no

while (($# > 0)); do
    case $1 in
        --) shift; break ;;
        --send-pending) only_pending=yes; shift; continue ;;
        --*) (($# > 1)) || misused "$1 needs a value" ;;
        *) misused "-- must stand before the command" ;;
    esac
    case $1 in
        --actor) actor=$2 ;;
        --operation) operation=$2 ;;
        --correlation-id) correlation_id=$2 ;;
        --source) source_name=$2 ;;
        --tenant) tenant=$2 ;;
        --topic) topic=$2 ;;
        --pending) pending=$2 ;;
        --timeout-ms) timeout_ms=$2 ;;
        *) misused "there is no option $1" ;;
    esac
    shift 2
done
[[ -n $actor ]] || actor=$(id -un 2>/dev/null || id -u)
[[ $timeout_ms =~ ^[1-9][0-9]{0,8}$ ]] || misused "--timeout-ms must be a number of milliseconds"
[[ -z $correlation_id || $correlation_id =~ ^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$ ]] ||
    misused "--correlation-id must be a UUID"
((${#operation} > 0 && ${#operation} <= 256)) || misused "--operation must have 1 to 256 characters"
((${#actor} <= 256)) || misused "--actor must have at most 256 characters"
if [[ $only_pending == yes ]]; then
    (($# == 0)) || misused "--send-pending runs no command"
else
    (($# > 0)) || misused "a command is missing"
fi

# Values as JSON ----------------------------------------------------------------------------------------------------

# A character of UTF-8 as bytes, by RFC 3629, section 4: nothing overlong, no surrogates, nothing above U+10FFFF.
readonly UTF8=$'([\x01-\x7f]|[\xc2-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]|[\xe1-\xec\xee\xef][\x80-\xbf]{2}|\xed[\x80-\x9f][\x80-\xbf]|\xf0[\x90-\xbf][\x80-\xbf]{2}|[\xf1-\xf3][\x80-\xbf]{3}|\xf4[\x80-\x8f][\x80-\xbf]{2})'

# is_utf8 TEXT
is_utf8() {
    local LC_ALL=C
    # Most are ASCII, and need no long match.
    [[ $1 != *[$'\x80'-$'\xff']* || $1 =~ ^$UTF8*$ ]]
}

# as_utf8 TEXT: sets REPLY to it with \xHH for each byte that is no UTF-8.
as_utf8() {
    local LC_ALL=C part bytes byte at=0 index
    REPLY=
    # A part at a time, as each look at a long text takes long.
    while part=${1:at:256} && [[ -n $part ]]; do
        [[ $part =~ ^$UTF8* ]]
        bytes=${BASH_REMATCH[0]}
        if [[ -n $bytes ]]; then
            REPLY+=$bytes
        else
            # Bytes that begin no character, or else the one byte that begins one which is not there.
            bytes=${part%%[!$'\x80'-$'\xc1'$'\xf5'-$'\xff']*}
            bytes=${bytes:-${part:0:1}}
            for ((index = 0; index < ${#bytes}; index++)); do
                printf -v byte '%02x' "'${bytes:index:1}"
                REPLY+=\\x${byte: -2}
            done
        fi
        at=$((at + ${#bytes}))
    done
}

# as_json TEXT: sets REPLY to it as a JSON string, with its quotes (RFC 8259, section 7).
as_json() {
    local LC_ALL=C code char escape
    if is_utf8 "$1"; then REPLY=$1; else as_utf8 "$1"; fi
    REPLY=${REPLY//\\/\\\\}
    REPLY=${REPLY//\"/\\\"}
    if [[ $REPLY == *[$'\x01'-$'\x1f']* ]]; then
        for code in {1..31}; do
            printf -v escape '\\u%04x' "$code"
            printf -v char '%b' "\\x${escape: -2}"
            REPLY=${REPLY//"$char"/"$escape"}
        done
    fi
    REPLY=\"$REPLY\"
}

new_uuid() {
    cat /proc/sys/kernel/random/uuid 2>/dev/null || uuidgen
}

# arguments COMMAND ARGUMENT..: sets args and argv to members of the event and of its metadata.
arguments() {
    local LC_ALL=C IFS=' ' joined argument list='' all_utf8=yes dropped
    joined="${*:2}"
    if ((${#joined} + ${#1} > ARGS_MAX_BYTES)); then
        joined=${joined:0:ARGS_MAX_BYTES}
        # Not in the middle of a character, which has at most four bytes.
        for dropped in 0 1 2 3; do
            if is_utf8 "${joined:0:${#joined} - dropped}"; then
                joined=${joined:0:${#joined} - dropped}
                break
            fi
        done
        as_json "$joined"
        args=$REPLY
        argv="\"argv_length_bytes\":$(printf '%s\0' "$@" | wc -c)"
        argv+=",\"argv_sha256\":\"$(printf '%s\0' "$@" | sha256sum | cut -d ' ' -f 1)\""
        return
    fi
    for argument in "$@"; do
        is_utf8 "$argument" || all_utf8=no
        as_json "$argument"
        list+=${list:+,}$REPLY
    done
    as_json "$joined"
    args=$REPLY
    argv="\"argv\":[$list]"
    [[ $all_utf8 == yes ]] || argv+=",\"argv_base64\":\"$(printf '%s\0' "$@" | base64 | tr -d '\n')\""
}

# member NAME TEXT: appends it to line.
member() {
    as_json "$2"
    line+=",\"$1\":$REPLY"
}

# event CODE COMMAND ARGUMENT..: sets line to the event. Reads started_us, ended_us.
event() {
    local code=$1 status=Failure time args argv duration_ms=$(((ended_us - started_us) / 1000))
    shift
    ((code != 0)) || status=Success
    TZ=UTC printf -v time '%(%Y-%m-%dT%H:%M:%S)T' $((started_us / 1000000))
    arguments "$@"
    line="$LINE_START$(new_uuid)\",\"correlation_id\":\"${correlation_id:-$(new_uuid)}\""
    line+=",\"timestamp\":\"$time.${started_us: -6}Z\",\"status\":\"$status\",\"result_signature\":\"$code\""
    # A clock that was set back tells no duration.
    ((duration_ms < 0 || duration_ms > DURATION_MAX_MS)) || line+=",\"duration_ms\":$duration_ms"
    member operation "$operation"
    member actor "$actor"
    member command "$1"
    line+=",\"args\":$args"
    member federated_source "$source_name"
    [[ -z $tenant ]] || member tenant_id "$tenant"
    member client_app purview_handler.sh
    as_json "${HOSTNAME-}"
    line+=",\"metadata\":{\"host\":$REPLY,$argv},$LINE_END"
}

# Sending -----------------------------------------------------------------------------------------------------------

# keep LINE: appends it to the pending events.
keep() {
    local directory
    directory=$(dirname -- "$pending")
    (
        umask 077
        mkdir -p -- "$directory" && exec {lock}>>"$pending.lock" && flock -w "$LOCK_SECONDS" "$lock" || exit 1
        # What a full disk or a crash cut stays a line of its own.
        [[ ! -s $pending || -z $(tail -c 1 -- "$pending") ]] || printf '\n' >>"$pending" || exit 1
        printf '%s\n' "$1" >>"$pending"
    ) 2>/dev/null
}

# emit: sends the lines of stdin; what went wrong is on stderr.
emit() {
    "${AUDIT_CONSUMER:-audit-consumer}" emit ${topic:+--topic "$topic"} --timeout-ms "$timeout_ms" >/dev/null
}

# take_pending: moves what waits to FILE.sending, unless an earlier try left one. Fails when nothing waits.
take_pending() {
    [[ ! -e $pending.sending ]] || return 0
    (
        exec {lock}>>"$pending.lock" && flock -w "$LOCK_SECONDS" "$lock" && [[ -s $pending ]] && mv -- "$pending" "$pending.sending"
    ) 2>/dev/null
}

# send_taken: sends FILE.sending and removes it.
send_taken() {
    local whole="^$LINE_START.*$LINE_END\$" error=$pending.error codes
    LC_ALL=C grep -a -- "$whole" "$pending.sending" 2>/dev/null | emit 2>"$error.new"
    codes=("${PIPESTATUS[@]}")
    # grep: 1 says that there was no such line, and more that it could not read them all.
    if ((codes[0] > 1 || codes[1] != 0)); then
        { printf '%(%s)T\n' -1; cat -- "$error.new"; } 2>/dev/null >"$error"
        rm -f -- "$error.new"
        return 1
    fi
    if LC_ALL=C grep -aqv -- "$whole" "$pending.sending"; then
        LC_ALL=C grep -av -- "$whole" "$pending.sending" >>"$pending.damaged" || return 1
        say "cut lines were not sent: they stand in $pending.damaged"
    fi
    rm -f -- "$pending.sending" "$error" "$error.new"
}

# send_pending: sends what waits, within about twice the time-out. Fails when something may still wait.
send_pending() (
    umask 077
    exec {sending}>>"$pending.sending.lock" || exit 1
    # Who holds it sends our line too, when it was kept before they took the file.
    flock -w $(((timeout_ms + 999) / 1000)) "$sending" || exit 1
    # Twice: what an earlier try left, then what was kept since.
    for _ in 1 2; do
        take_pending || exit 0
        send_taken || exit 1
    done
    [[ ! -s $pending ]]
)

# is_too_early: whether the last try failed a moment ago.
is_too_early() {
    local failed_at=0
    [[ -e $pending.error ]] && read -r failed_at 2>/dev/null <"$pending.error"
    [[ $failed_at =~ ^[0-9]+$ ]] && (($(printf '%(%s)T' -1) - failed_at < RETRY_SECONDS))
}

if [[ $only_pending == yes ]]; then
    [[ -e $pending || -e $pending.sending ]] || exit 0
    send_pending || { say "events still wait in $pending: $(tail -n +2 "$pending.error" 2>/dev/null)"; exit 1; }
    exit 0
fi

# The command -------------------------------------------------------------------------------------------------------

child=
waiting_signals=()
was_interrupted=no

# Called by traps:
# shellcheck disable=SC2317
# is_in_foreground: whether a terminal sends its signals to us and the command alike.
is_in_foreground() {
    local stat fields
    { stat=$(<"/proc/$$/stat"); } 2>/dev/null || { [[ -t 0 ]]; return; }
    # Behind the name, which may hold anything: state, parent, group, session, terminal, the terminal's group.
    read -r -a fields <<<"${stat##*) }"
    [[ ${fields[2]} == "${fields[5]}" ]]
}

# shellcheck disable=SC2317
# pass_on SIGNAL: to the command; INT and QUIT not when the terminal has done so.
pass_on() {
    was_interrupted=yes
    if [[ $1 == INT || $1 == QUIT ]] && is_in_foreground; then
        return
    fi
    if [[ -n $child ]]; then
        kill -s "$1" "$child" 2>/dev/null
    else
        waiting_signals+=("$1")
    fi
}

readonly SIGNALS=(HUP INT QUIT TERM USR1 USR2)
for signal in "${SIGNALS[@]}"; do
    # shellcheck disable=SC2064 # the name as it is now
    trap "pass_on $signal" "$signal"
done

started_us=${EPOCHREALTIME//[!0-9]/}
# In the background, so that signals reach us while it runs; bash would take its stdin and make it ignore INT and QUIT.
(
    trap - "${SIGNALS[@]}"
    exec -- "$@"
) <&0 &
child=$!
for signal in ${waiting_signals[@]+"${waiting_signals[@]}"}; do
    kill -s "$signal" "$child" 2>/dev/null
done
while true; do
    was_interrupted=no
    # Bash would report a command that a signal ended.
    { wait "$child"; } 2>/dev/null
    code=$?
    # A signal of ours ends the wait and not the command.
    [[ $was_interrupted == yes ]] || break
done
ended_us=${EPOCHREALTIME//[!0-9]/}
# Its process id may belong to another now; and the event is to be sent whatever comes.
trap ':' "${SIGNALS[@]}"

event "$code" "$@"
if keep "$line"; then
    if ! is_too_early; then
        send_pending || sync -- "$pending" 2>/dev/null
    fi
elif ! emit <<<"$line"; then
    say "the event could be neither sent nor kept in $pending: $line"
fi
exit "$code"
