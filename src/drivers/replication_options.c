/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "drivers/replication_options.h"

#include "drivers/replication.h"

#include <errno.h>

enum peer_ack { PEER_ACK_NONE, PEER_ACK_FLUSH, PEER_ACK_WRITE };

const char *const replication_mode_names[] = {"primary", "secondary", NULL};
static const char *const peer_ack_names[] = {"none", "flush", "write", NULL};
static const char *const overflow_names[] = {"throttle", "resync", NULL};
static const char *const peer_loss_names[] = {"continue", "hold", NULL};
/* No descriptor: a connection that has ended is made anew. */
static const char *const peer_type_names[] = {"unix", "inet", NULL};

static int check_mode(const struct node *node, const struct replication_options *options,
                      struct err *err)
{
    bool primary = options->mode == REPLICATION_PRIMARY;

    if (primary && options->top_id != NULL)
        return err_set(err, -EINVAL,
                       "node '%s': option 'top-id' is for mode=secondary: leave it out on the"
                       " primary",
                       node->name);
    if (!primary && (options->top_id == NULL || options->top_id[0] == '\0'))
        return err_set(
            err, -EINVAL,
            "node '%s': option 'top-id' is missing: with mode=secondary it names the node"
            " that the secondary's users sit on",
            node->name);
    if (!primary && options->has_peer_control)
        return err_set(err, -EINVAL,
                       "node '%s': option 'peer-control' is for mode=primary: leave it out on the"
                       " secondary",
                       node->name);
    return 0;
}

static int check_supported(const struct node *node, const struct replication_options *options,
                           struct err *err)
{
    const struct {
        bool given;
        const char *name;
    } later[] = {
        {options->has_max_lag_bytes, "max-lag-bytes"},
        {options->has_overflow, "overflow"},
        {options->has_request_timeout, "request-timeout"},
        {options->has_on_peer_loss, "on-peer-loss"},
    };
    for (size_t i = 0; i < ARRAY_LEN(later); i++) {
        if (later[i].given)
            return err_set(err, -ENOTSUP,
                           "node '%s': option '%s' of driver replication is not supported yet:"
                           " leave it out",
                           node->name, later[i].name);
    }
    if (options->has_peer_ack && options->peer_ack != PEER_ACK_WRITE)
        return err_set(err, -ENOTSUP,
                       "node '%s': peer-ack=%s is not supported yet: use peer-ack=write or leave it"
                       " out",
                       node->name, peer_ack_names[options->peer_ack]);
    return 0;
}

int replication_options_check(const struct node *node, struct err *err)
{
    const struct replication_options *options = node->options;
    int ret = check_mode(node, options, err);

    return ret < 0 ? ret : check_supported(node, options, err);
}

#define FIELD(field)   OPT_FIELD(struct replication_options, field)
#define PRESENT(field) OPT_PRESENT(struct replication_options, field)

static const struct opt peer_control_opts[] = {
    {.name = "type",
     .type = OPT_ENUM,
     .offset = FIELD(peer_control.type),
     .required = true,
     .values = peer_type_names,
     .help = "kind of socket"},
    {.name = "tls-creds",
     .type = OPT_STRING,
     .offset = FIELD(peer_tls_creds),
     .help = "id of a tls-creds-x509 or tls-creds-psk object with endpoint=client"},
    {.name = "tls-hostname",
     .type = OPT_STRING,
     .offset = FIELD(peer_tls_hostname),
     .help = "what the server's certificate must be for (the address's host)"},
    {0},
};

const struct opt replication_opts[] = {
    {.name = "mode",
     .type = OPT_ENUM,
     .offset = FIELD(mode),
     .required = true,
     .values = replication_mode_names,
     .help = "which side of the pair this is"},
    {.name = "top-id",
     .type = OPT_STRING,
     .offset = FIELD(top_id),
     .help = "secondary: the node that the secondary's users sit on"},
    {.name = "file",
     .type = OPT_CHILD,
     .offset = FIELD(file),
     .required = true,
     .help = "primary: the link to the peer; secondary: the active disk"},
    {.name = "peer-control",
     .type = OPT_UNION,
     .present = PRESENT(has_peer_control),
     .members = peer_control_opts,
     .discriminator = "type",
     .variants = address_flat_variants,
     .help = "primary: where the secondary is controlled, its listener with role=peer"},
    {.name = "peer-ack",
     .type = OPT_ENUM,
     .offset = FIELD(peer_ack),
     .present = PRESENT(has_peer_ack),
     .values = peer_ack_names,
     .help = "when the guest waits for the secondary (only write yet)"},
    {.name = "max-lag-bytes",
     .type = OPT_SIZE,
     .offset = FIELD(max_lag_bytes),
     .present = PRESENT(has_max_lag_bytes),
     .help = "most bytes on their way to the peer (not supported yet)"},
    {.name = "overflow",
     .type = OPT_ENUM,
     .offset = FIELD(overflow),
     .present = PRESENT(has_overflow),
     .values = overflow_names,
     .help = "what happens at max-lag-bytes (not supported yet)"},
    {.name = "request-timeout",
     .type = OPT_UINT,
     .offset = FIELD(request_timeout),
     .present = PRESENT(has_request_timeout),
     .help = "seconds until a silent peer is dropped (not supported yet)"},
    {.name = "on-peer-loss",
     .type = OPT_ENUM,
     .offset = FIELD(on_peer_loss),
     .present = PRESENT(has_on_peer_loss),
     .values = peer_loss_names,
     .help = "what a guest's flush does without the peer (not supported yet)"},
    {.name = NULL},
};
