/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The events. The floors below send them; here stands what they look like from outside. */
#include "control/commands.h"

#define TEXT(name_)                                           \
    {                                                         \
        .name = (name_), .type = OPT_STRING, .required = true \
    }
#define TEXT_OR_NONE(name_)                 \
    {                                       \
        .name = (name_), .type = OPT_STRING \
    }
#define NUMBER(name_)                                       \
    {                                                       \
        .name = (name_), .type = OPT_UINT, .required = true \
    }
#define FLAG(name_)                                         \
    {                                                       \
        .name = (name_), .type = OPT_BOOL, .required = true \
    }
#define FLAG_OR_NONE(name_)               \
    {                                     \
        .name = (name_), .type = OPT_BOOL \
    }
#define WORD(name_, values_)                                                     \
    {                                                                            \
        .name = (name_), .type = OPT_ENUM, .required = true, .values = (values_) \
    }

static const char *const directions[] = {"read", "write", NULL};
static const char *const actions[] = {"ignore", "report", "stop", NULL};
static const char *const job_types[] = {"backup", "commit", "mirror", NULL};
static const char *const job_statuses[] = {"undefined", "created",   "running", "paused",
                                           "ready",     "standby",   "waiting", "pending",
                                           "aborting",  "concluded", "null",    NULL};
static const char *const quorum_operations[] = {"read", "write", "flush", NULL};
static const char *const shutdown_reasons[] = {"host-qmp-quit", "host-signal", NULL};
static const char *const exit_reasons[] = {"request", NULL};
static const char *const roles[] = {"primary", "secondary", NULL};
static const char *const stages[] = {"none", "running", "failover", "failover-failed",
                                     "done", NULL};

static const struct opt export_data[] = {TEXT("id"), {0}};

static const struct opt io_error_data[] = {
    TEXT("device"),
    TEXT_OR_NONE("node-name"),
    WORD("operation", directions),
    WORD("action", actions),
    FLAG_OR_NONE("nospace"),
    TEXT("reason"),
    {0},
};

static const struct opt job_data[] = {
    WORD("type", job_types), TEXT("device"), NUMBER("len"), NUMBER("offset"), NUMBER("speed"), {0},
};

static const struct opt job_end_data[] = {
    WORD("type", job_types), TEXT("device"),        NUMBER("len"), NUMBER("offset"),
    NUMBER("speed"),         TEXT_OR_NONE("error"), {0},
};

static const struct opt job_error_data[] = {
    TEXT("device"),
    WORD("operation", directions),
    WORD("action", actions),
    {0},
};

static const struct opt job_pending_data[] = {WORD("type", job_types), TEXT("id"), {0}};

static const struct opt job_status_data[] = {TEXT("id"), WORD("status", job_statuses), {0}};

static const struct opt quorum_failure_data[] = {
    TEXT("reference"),
    NUMBER("sector-num"),
    NUMBER("sectors-count"),
    {0},
};

static const struct opt quorum_bad_data[] = {
    WORD("type", quorum_operations),
    TEXT_OR_NONE("error"),
    TEXT("node-name"),
    NUMBER("sector-num"),
    NUMBER("sectors-count"),
    {0},
};

static const struct opt shutdown_data[] = {FLAG("guest"), WORD("reason", shutdown_reasons), {0}};

static const struct opt colo_exit_data[] = {
    WORD("mode", roles),
    WORD("reason", exit_reasons),
    {0},
};

static const struct opt stage_data[] = {
    WORD("role", roles),
    WORD("stage", stages),
    TEXT("node"),
    {0},
};

static const struct opt checkpoint_data[] = {
    WORD("role", roles), NUMBER("epoch"), NUMBER("held-ns"), NUMBER("duration-ns"), {0},
};

static const struct opt error_data[] = {
    WORD("side", roles),    TEXT("disk"),     TEXT("node"),  TEXT("operation"),
    NUMBER("offset"),       NUMBER("length"), TEXT("errno"), TEXT("reason"),
    NUMBER("wall-time-ns"), NUMBER("count"),  {0},
};

static const struct opt overlay_data[] = {
    TEXT("node-name"),
    NUMBER("log-bytes"),
    NUMBER("max-bytes"),
    {0},
};

static const struct opt link_data[] = {
    TEXT("node"), TEXT("peer"), FLAG("connected"), TEXT_OR_NONE("reason"), {0},
};

static const struct opt peer_data[] = {
    WORD("role", roles),
    NUMBER("session"),
    FLAG("connected"),
    TEXT_OR_NONE("reason"),
    FLAG_OR_NONE("taken-over"),
    TEXT_OR_NONE("stream-reason"),
    {0},
};

const struct qmp_event_type events_table[] = {
    {.name = "BLOCK_EXPORT_DELETED", .data = export_data},
    {.name = "BLOCK_IO_ERROR", .data = io_error_data, .interval_ns = NS_PER_S, .key = "device"},
    {.name = "BLOCK_JOB_COMPLETED", .data = job_end_data},
    {.name = "BLOCK_JOB_CANCELLED", .data = job_data},
    {.name = "BLOCK_JOB_READY", .data = job_data},
    {.name = "BLOCK_JOB_PENDING", .data = job_pending_data},
    {.name = "BLOCK_JOB_ERROR", .data = job_error_data},
    {.name = "JOB_STATUS_CHANGE", .data = job_status_data},
    {.name = "QUORUM_FAILURE", .data = quorum_failure_data, .interval_ns = NS_PER_S},
    {.name = "QUORUM_REPORT_BAD",
     .data = quorum_bad_data,
     .interval_ns = NS_PER_S,
     .key = "node-name"},
    {.name = "COLO_EXIT", .data = colo_exit_data},
    {.name = "SHUTDOWN", .data = shutdown_data},
    {.name = "REPLICATION_STAGE_CHANGE", .data = stage_data, .peer = true},
    {.name = "REPLICATION_CHECKPOINT", .data = checkpoint_data, .peer = true},
    {.name = "REPLICATION_ERROR", .data = error_data, .peer = true},
    {.name = "REPLICATION_LINK", .data = link_data},
    {.name = "REPLICATION_PEER", .data = peer_data},
    {.name = "OVERLAY_NEARLY_FULL",
     .data = overlay_data,
     .interval_ns = NS_PER_S,
     .key = "node-name"},
    {0},
};
