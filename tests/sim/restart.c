/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The manager starts a daemon again that has died, and looks what it has kept. */
#include "world.h"

#include <errno.h>
#include <string.h>

/* What a failover that nobody answered has come to. */
static int failover_again(struct host *host, struct err *err) MAY_WAIT
{
    char stage[32];

    if (!manager_query_stage(host, stage, sizeof(stage)))
        return err_set(err, -ECONNRESET, "the stage of %s is not known", host->name);
    if (strcmp(stage, "running") != 0)
        return 0;
    return qmp_command(host, NULL, err,
                       "{'execute':'replication-stop','arguments':{'failover':true}}");
}

/* Whether it says that it waits for a synchronisation; and why. With level 'host' it need not. False: it does
 * not answer. */
static bool query_awaits(struct host *host, bool *ret_awaits, char *reason, size_t reason_bytes)
    MAY_WAIT
{
    struct json_object *result = NULL, *consistent = NULL, *stage = NULL, *why = NULL;
    struct json_object *level = NULL;
    struct err err = ERR_INIT;

    if (qmp_command(host, &result, &err, "{'execute':'query-replication'}") < 0)
        return false;
    bool awaits = json_object_object_get_ex(result, "consistent", &consistent) &&
                  !json_object_get_boolean(consistent) &&
                  json_object_object_get_ex(result, "stage", &stage) &&
                  strcmp(json_object_get_string(stage), "done") != 0;
    json_object_object_get_ex(result, "inconsistent-reason", &why);
    if (awaits && json_object_object_get_ex(result, "durability", &level) &&
        strcmp(json_object_get_string(level), "host") == 0)
        world_violation(host->world, invariant_name(I2_LEVEL_HOST),
                        "%s has lost its power, and with that its view", host->name);
    snprintf(reason, reason_bytes, "%s", why != NULL ? json_object_get_string(why) : "");
    json_object_put(result);
    *ret_awaits = awaits;
    return true;
}

/* Only the disk itself is left of who had taken over. */
static void take_the_disk(struct host *host) MAY_WAIT
{
    struct err err = ERR_INIT;

    view_blind(host->view);
    process_quit(host);
    host->merging = host->power_lost = false;
    host->down = process_start(host, false, false, false, &err) < 0;
}

/* It had taken over, and not yet made that durable: what is left is all there is. */
static void take_what_is_left(struct host *host) MAY_WAIT
{
    struct err err = ERR_INIT;
    bool well = host_is_well(host);
    unsigned troubles = host->troubles;

    view_blind(host->view);
    int r = qmp_command(
        host, NULL, &err,
        "{'execute':'replication-stop','arguments':{'failover':true,'force':true}}");
    if (r == 0 && manager_wait_merged(host, NS_PER_S))
        return;
    if (well && host_is_well(host) && troubles == host->troubles)
        world_violation(host->world, invariant_name(I8_NOTHING_HANGS),
                        "%s is told to take over with what is left, and does not: %s", host->name,
                        r < 0 ? err.text : "the merge does not end");
    take_the_disk(host); /* what is left cannot be read either */
}

/* The host of a group below level 'host' lost its power: either all is there, which its guest's reads
 * will show, or it says so and takes over for nobody who does not force it. */
static void look_after_power(struct host *host) MAY_WAIT
{
    struct world *world = host->world;
    struct err err = ERR_INIT;
    bool awaits = false;
    char reason[400];

    if (!query_awaits(host, &awaits, reason, sizeof(reason)))
        return; /* it is asked when it is started again */
    host->power_lost = false;
    if (!awaits)
        return;
    world->stats.inconsistent++;
    if (qmp_command(host, NULL, &err,
                    "{'execute':'replication-stop','arguments':{'failover':true}}") == 0)
        world_violation(world, invariant_name(I3_FAILOVER_CONTRACT),
                        "%s says that it is inconsistent, and takes over", host->name);
    if (host->role == ROLE_STANDBY) {
        host->role = ROLE_SYNC;
        host->awaits = host_is_up(host);
    } else {
        /* Only for as long as what it took over with has not been made durable. */
        if (host->took_over && strstr(reason, "level") == NULL)
            world_violation(world, invariant_name(I3_FAILOVER_CONTRACT),
                            "%s had taken over, and a loss of power has made it inconsistent: %s",
                            host->name, reason);
        if (host->took_over && view_was_flushed(host->view, host->took_over_at))
            world_violation(world, invariant_name(I1_ACKNOWLEDGED_IS_READ),
                            "%s had taken over, and what was flushed since is lost: %s", host->name,
                            reason);
        take_what_is_left(host);
    }
}

/* A secondary, and one that has not finished its failover, goes on as its record says. `bare`: it waits
 * for that to be told. */
static int restart_host(struct host *host, bool bare, struct err *err) MAY_WAIT
{
    bool secondary = host->role == ROLE_STANDBY || host->merging;
    int r = host->bare ? 0 : process_start(host, secondary, false, false, err);

    host->bare = r == 0 && bare && !host->merging && secondary;
    if (host->bare)
        return 0;
    if (r == 0 && secondary)
        r = manager_start(host, "secondary", "empty", err);
    if (r == 0 && host->merging && !host->power_lost)
        r = failover_again(host, err);
    host->took_over = host->took_over || r == 0;
    return r;
}

static void restart_failed(struct host *host, int code, bool excused, const struct err *err)
    MAY_WAIT
{
    struct world *world = host->world;

    world_note(world, "%s does not start again: %s", host->name, err->text);
    if (code == -EREMOTEIO && host->power_lost && host->role == ROLE_STANDBY) {
        /* Below level 'host' its record may be lost with the power: it says so, and does nothing. */
        host->role = ROLE_DOWN;
        host->down = host->power_lost = false;
        world->stats.inconsistent++;
        return;
    }
    if (code == -EREMOTEIO && host->power_lost && host->merging && !host->took_over) {
        take_the_disk(host); /* it had died before it could make that durable */
        return;
    }
    if (!excused)
        world_violation(world, invariant_name(I8_NOTHING_HANGS), "%s (%s) does not start again: %s",
                        host->name, role_name(host->role), err->text);
    process_kill(host);
}

void manager_restart(struct world *world, struct host *host, bool bare)
{
    struct err err = ERR_INIT;
    bool well = host_is_sound(host) && !host->frozen;

    if (host->bare ? bare || !host_is_up(host) : !host->down || host->process != NULL)
        return;
    host->changing = true;
    unsigned troubles = host->troubles;
    int r = restart_host(host, bare, &err);
    if (r == 0) {
        host->down = host->process == NULL; /* it may have died with its answer on the way */
        view_settle(host->view, host->life_began);
        world->stats.restarts++;
        if (host->power_lost && !host->bare)
            look_after_power(host);
    } else {
        restart_failed(host, r, !well || !host_is_sound(host) || troubles != host->troubles, &err);
    }
    host->changing = false;
}
