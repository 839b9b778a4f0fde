-- The monitor's database. Tables hold all state; the functions below are all that a keeper may do.
-- They record and answer; decisions are taken by the monitor's process, never here.

create schema pgautofailover;
grant usage on schema pgautofailover to autoctl_node;
-- what no login may read, whatever is granted in the other one
create schema pgautofailover_private;
revoke create on schema public from public;
do $$ begin
    execute format('revoke temporary on database %I from public', current_database());
end $$;

create table pgautofailover.formation (
    formationid          text primary key,
    kind                 text not null default 'pgsql',
    dbname               text not null default 'postgres',
    opt_secondary        boolean not null default true,
    number_sync_standbys int not null default 0 check (number_sync_standbys >= 0),
    -- protection: commits wait rather than exist once; availability: while a standby is healthy; performance: never
    durability           text not null default 'availability' check (durability in ('protection', 'availability', 'performance')),
    strict_fencing       boolean not null default false,
    maximum_lag_on_failover bigint not null default 16777216 check (maximum_lag_on_failover >= 0),
    heartbeat_ms                    int not null default 1000 check (heartbeat_ms between 100 and 10000),
    network_partition_timeout_ms    int not null default 2500,
    fence_stop_timeout_ms           int not null default 1200 check (fence_stop_timeout_ms >= 400),
    node_timeout_ms                 int not null default 4000,
    unreachable_primary_timeout_ms  int not null default 30000,
    postgres_timeout_ms             int not null default 2000 check (postgres_timeout_ms >= 500),
    fast_forward_timeout_ms         int not null default 30000 check (fast_forward_timeout_ms >= 1000),
    switchover_timeout_ms           int not null default 30000 check (switchover_timeout_ms >= 1000),
    caught_up_bytes                 bigint not null default 16777216 check (caught_up_bytes >= 0),
    -- A fenced primary needs some time to stop: nobody may be judged dead before that is over.
    constraint fence_before_failover check (node_timeout_ms > network_partition_timeout_ms + fence_stop_timeout_ms),
    constraint fence_after_heartbeat check (network_partition_timeout_ms >= 2 * heartbeat_ms),
    constraint unreachable_after_dead check (unreachable_primary_timeout_ms >= node_timeout_ms)
);
insert into pgautofailover.formation (formationid) values ('default');

create table pgautofailover."group" (
    formationid  text not null references pgautofailover.formation on delete cascade,
    groupid      int not null,
    -- what the primary was last told about synchronous_standby_names
    syncversion  bigint not null default 0,
    syncprimary  bigint not null default 0,
    syncmembers  bigint[] not null default '{}',
    syncnumber   int not null default 0,
    -- what it was told before that, and may have been in force since syncinforce was
    syncpending  jsonb not null default '[]',
    -- what it last reported to be in force; null: not known
    syncinforce  jsonb,
    -- what an operator has asked for, and when: {"target": node id or null, "allowDataLoss": boolean, "planned": boolean,
    -- "maintenance": id of the primary that is to be left alone afterwards, or null}
    request      jsonb,
    requesttime  timestamptz not null default clock_timestamp(),
    -- a server left the history while the primary could not be asked: an operator must say which timeline holds
    disputed     boolean not null default false,
    -- why nobody can be promoted; null: nothing is in the way
    blocked      text,
    primary key (formationid, groupid)
);

-- The password with which a group's nodes replicate from each other. Each is told it with the answer to a report of its
-- own. No constraint on its value: a failing row would be printed to the log.
create table pgautofailover_private.replication_secret (
    formationid  text not null,
    groupid      int not null,
    secretid     uuid not null default gen_random_uuid(),
    -- 244 random bits
    password     text not null default replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', ''),
    primary key (formationid, groupid),
    foreign key (formationid, groupid) references pgautofailover."group" on delete cascade
);

-- The timelines of each group, where each left its parent, and by whose promotion.
create table pgautofailover.timeline_history (
    formationid  text not null,
    groupid      int not null,
    timeline     int not null check (timeline > 0),
    parent       int not null,
    forklsn      pg_lsn not null,
    nodeid       bigint not null,
    nodename     text not null,
    promotedat   timestamptz not null default clock_timestamp(),
    primary key (formationid, groupid, timeline),
    foreign key (formationid, groupid) references pgautofailover."group" on delete cascade
);

create table pgautofailover.node (
    nodeid             bigint generated by default as identity primary key,
    formationid        text not null,
    groupid            int not null,
    nodename           text not null,
    nodehost           text not null,
    nodeport           int not null check (nodeport between 1 and 65535),
    sysidentifier      numeric,
    -- SHA-256 of what only the node itself knows: whoever may read this table can't speak in its name
    identity           bytea not null unique,
    goalstate          text not null default 'init',
    goalversion        bigint not null default 1,
    goaltime           timestamptz not null default clock_timestamp(),
    reportedstate      text not null default 'init',
    -- the goal, by its version, that was the present one when this state was reported
    reportedversion    bigint not null default 0,
    reportedpgisrunning boolean not null default false,
    reportedrepstate   text not null default '',
    reporttime         timestamptz not null default clock_timestamp(),
    reportno           bigint not null default 0,
    -- the last one that told everything, and what stood for the answer when the monitor looked at the group last
    fullreport         bigint not null default 0,
    answertoken        text not null default '',
    decidedreport      bigint not null default 0,
    reportedtli        int not null default 0,
    reportedlsn        pg_lsn not null default '0/0',
    walreporttime      timestamptz not null default clock_timestamp(),
    inrecovery         boolean not null default false,
    streaming          boolean not null default false,
    stalledsince       timestamptz,
    -- of a primary: the nodes to which it does not send, by its own word, and since when: {"node id": timestamptz}
    notsentto          jsonb not null default '{}',
    -- since when it receives nothing from the old primary, by its own durable promise
    promisedsince      timestamptz,
    -- it was elected and could not fetch the WAL that it lacked
    passedover         boolean not null default false,
    -- the node from which it is to fetch that WAL
    fetchfrom          bigint,
    -- an operator wants it left alone
    maintenance        boolean not null default false,
    -- of a primary that was stopped cleanly for its present goal: {"lsn": pg_lsn, "tookMs": int}; who has WAL up to there
    -- has everything
    shutdown           jsonb,
    -- in how many ms after its last contact it has stopped, were it isolated, by its own word
    fencems            int not null default 0,
    -- its own last promotion, which need not have opened for writes: {"timeline": int, "forkLsn": pg_lsn}
    promotion          jsonb,
    startfailures      int not null default 0,
    health             int not null default -1,
    healthchecktime    timestamptz not null default clock_timestamp(),
    statechangetime    timestamptz not null default clock_timestamp(),
    candidatepriority  int not null default 50 check (candidatepriority between 0 and 100),
    replicationquorum  boolean not null default true,
    nodecluster        text not null default 'default',
    unique (formationid, nodename),
    unique (nodehost, nodeport),
    foreign key (formationid, groupid) references pgautofailover."group"
) with (fillfactor = 25);
create index on pgautofailover.node (formationid, groupid);

-- Nodes that were here. One that comes back is told that it was removed, and stops; one that was never here may belong
-- to a later state of this monitor, which has been restored from a backup: it is told only that it isn't known.
create table pgautofailover.removed_node (
    nodeid     bigint not null,
    identity   bytea primary key,
    removedat  timestamptz not null default clock_timestamp()
);
create function pgautofailover.remember_removed() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    insert into pgautofailover.removed_node (nodeid, identity) values (old.nodeid, old.identity) on conflict do nothing;
    return null;
end $$;
create trigger remember_removed after delete on pgautofailover.node
    for each row execute function pgautofailover.remember_removed();

create table pgautofailover.event (
    eventid           bigint generated always as identity primary key,
    eventtime         timestamptz not null default clock_timestamp(),
    formationid       text not null,
    groupid           int not null,
    nodeid            bigint not null,
    nodename          text not null,
    nodehost          text not null,
    nodeport          int not null,
    reportedstate     text not null,
    goalstate         text not null,
    reportedrepstate  text not null,
    reportedtli       int not null,
    reportedlsn       pg_lsn not null,
    candidatepriority int not null,
    replicationquorum boolean not null,
    rule              text,
    description       text not null
);
create index on pgautofailover.event (formationid, groupid, eventid);

create function pgautofailover.log_event(node pgautofailover.node, rule text, description text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$ begin
    insert into pgautofailover.event (formationid, groupid, nodeid, nodename, nodehost, nodeport, reportedstate,
        goalstate, reportedrepstate, reportedtli, reportedlsn, candidatepriority, replicationquorum, rule, description)
    values ((node).formationid, (node).groupid, (node).nodeid, (node).nodename, (node).nodehost, (node).nodeport,
        (node).reportedstate, (node).goalstate, (node).reportedrepstate, (node).reportedtli, (node).reportedlsn,
        (node).candidatepriority, (node).replicationquorum, rule, description);
end $$;

-- A hint for whoever watches this node, its own keeper included: read again.
create function pgautofailover.notify_state(node pgautofailover.node) returns void
language sql set search_path = pg_catalog, pg_temp as $$
    select pg_notify('state', json_build_object('type', 'state', 'formation', (node).formationid,
        'groupId', (node).groupid, 'nodeId', (node).nodeid, 'name', (node).nodename, 'host', (node).nodehost,
        'port', (node).nodeport, 'reportedState', (node).reportedstate, 'goalState', (node).goalstate,
        'goalVersion', (node).goalversion, 'decidedReport', (node).decidedreport::text, 'health', (node).health)::text);
$$;

-- The planner puts the bodies of the next few where they are called: nothing of that is done at each call. For that they
-- are declared no more constant than what they call, and leave the search path to their callers.
create function pgautofailover.assigned_set(g pgautofailover."group") returns jsonb
language sql stable as $$
    select jsonb_build_object('version', (g).syncversion, 'primaryId', (g).syncprimary,
                              'members', to_jsonb((g).syncmembers), 'number', (g).syncnumber);
$$;

create function pgautofailover.policy(f pgautofailover.formation) returns jsonb
language sql stable as $$
    select jsonb_build_object(
        'heartbeatMs', (f).heartbeat_ms, 'networkPartitionTimeoutMs', (f).network_partition_timeout_ms,
        'fenceStopTimeoutMs', (f).fence_stop_timeout_ms,
        'nodeTimeoutMs', (f).node_timeout_ms, 'unreachablePrimaryTimeoutMs', (f).unreachable_primary_timeout_ms,
        'postgresTimeoutMs', (f).postgres_timeout_ms, 'caughtUpBytes', (f).caught_up_bytes::text,
        'fastForwardTimeoutMs', (f).fast_forward_timeout_ms, 'switchoverTimeoutMs', (f).switchover_timeout_ms);
$$;

create function pgautofailover.identity_digest(identity uuid) returns bytea
language sql immutable as $$
    select sha256(uuid_send(identity));
$$;

-- Another one whenever the answer to a report of this node would be another, but for positions, or when an operator has set
-- something, which keepers keep for a monitor that loses its memory.
create function pgautofailover.answer_token(node_id bigint) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp as $$ begin
    return (select md5(concat_ws(' ', f, g, n.goalversion, n.decidedreport, n.fetchfrom,
        (select s.secretid from pgautofailover_private.replication_secret s
            where s.formationid = n.formationid and s.groupid = n.groupid),
        (select string_agg(concat_ws(' ', p.nodeid, p.nodename, p.nodehost, p.nodeport, p.reportedstate, p.goalstate,
                p.candidatepriority, p.replicationquorum, p.maintenance), ' ' order by p.nodeid)
            from pgautofailover.node p where p.formationid = n.formationid and p.groupid = n.groupid)))
    from pgautofailover.node n
    join pgautofailover.formation f using (formationid)
    join pgautofailover."group" g using (formationid, groupid)
    where n.nodeid = node_id);
end $$;

create function pgautofailover.refresh_answer_tokens(formation_id text, group_id int) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    update pgautofailover.node n set answertoken = now_.token
    from (select p.nodeid, pgautofailover.answer_token(p.nodeid) as token from pgautofailover.node p
        where p.formationid = formation_id and p.groupid = group_id) now_
    where n.nodeid = now_.nodeid and n.answertoken <> now_.token;
end $$;

-- What a keeper needs to know after a report; everything is read at one moment.
-- known_secret: the replication password that it has; another one is told.
-- In PL/pgSQL, here and below, a statement is planned once in a session.
create function pgautofailover.answer(node_id bigint, known_secret text default null) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp as $$ begin
    return (select jsonb_build_object(
        'nodeId', n.nodeid, 'groupId', n.groupid, 'name', n.nodename,
        'goal', n.goalstate, 'goalVersion', n.goalversion, 'decidedReport', n.decidedreport::text,
        'dbname', f.dbname, 'fetchFrom', n.fetchfrom,
        'planned', n.goalstate = 'draining' and coalesce((g.request->>'planned')::boolean, false),
        'sync', pgautofailover.assigned_set(g), 'policy', pgautofailover.policy(f),
        'token', pgautofailover.answer_token(n.nodeid),
        'nodes', (select coalesce(jsonb_agg(jsonb_build_object(
                'nodeId', p.nodeid, 'name', p.nodename, 'host', p.nodehost, 'port', p.nodeport,
                'reported', p.reportedstate, 'goal', p.goalstate, 'lsn', p.reportedlsn - '0/0'::pg_lsn)
                order by p.nodeid), '[]')
            from pgautofailover.node p
            where p.formationid = n.formationid and p.groupid = n.groupid and p.nodeid <> n.nodeid))
        || coalesce((select jsonb_build_object('secret', jsonb_build_object('id', s.secretid, 'password', s.password))
            from pgautofailover_private.replication_secret s
            where s.formationid = n.formationid and s.groupid = n.groupid
              and s.secretid::text is distinct from known_secret), '{}')
    from pgautofailover.node n
    join pgautofailover.formation f using (formationid)
    join pgautofailover."group" g using (formationid, groupid)
    where n.nodeid = node_id);
end $$;

-- One decision, registration or removal at a time in a group. An advisory lock: it writes no WAL.
create function pgautofailover.lock_group(formation_id text, group_id int) returns void
language sql as $$
    select pg_advisory_xact_lock(hashtextextended(formation_id || '/' || group_id, 0));
$$;

-- Errors carry codes of class PA, which the client turns into sentences.

-- Names go to logs, notifications and connection strings: none may break a line there.
create function pgautofailover.check_name(what text, name text) returns void
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
    if coalesce(octet_length(name) not between 1 and 63 or name <> btrim(name) or name ~ '[\x01-\x1f\x7f]', true) then
        raise exception 'the name of a % has 1 to 63 bytes, no control characters and no blanks at its ends: not %',
            what, coalesce(to_json(name)::text, 'null') using errcode = 'PA013';
    end if;
end $$;

-- It stands in pg_hba.conf and in connection strings of other nodes.
create function pgautofailover.check_host(node_host text, node_port int) returns void
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
    if coalesce(node_host !~ '^[A-Za-z0-9_.:%/-]{1,253}$', true) then
        raise exception 'a host is a name or an address, not %', coalesce(to_json(node_host)::text, 'null') using errcode = 'PA013';
    end if;
    if coalesce(node_port not between 1 and 65535, true) then
        raise exception 'a port is a number from 1 to 65535, not %', node_port using errcode = 'PA013';
    end if;
end $$;

create function pgautofailover.register_node(
    formation_id text, node_host text, node_port int, node_identity uuid, node_name text default null,
    system_identifier numeric default null, group_id int default 0, dbname text default null,
    candidate_priority int default 50, replication_quorum boolean default true)
returns jsonb language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    node pgautofailover.node;
    other pgautofailover.node;
    new_id bigint;
begin
    perform pgautofailover.lock_group(formation_id, group_id);
    -- it must not be dropped before its first node is there
    perform from pgautofailover.formation f where f.formationid = formation_id for key share;
    if not found then
        raise exception 'formation "%" does not exist', formation_id using errcode = 'PA001';
    end if;
    perform pgautofailover.check_host(node_host, node_port);
    perform pgautofailover.check_name('node', coalesce(node_name, 'node_1'));
    perform pgautofailover.check_name('database', coalesce(dbname, 'postgres'));

    -- the same node again, after an interrupted create
    select * into node from pgautofailover.node n where n.identity = pgautofailover.identity_digest(node_identity);
    if found then
        if (node.formationid, node.nodehost, node.nodeport) is distinct from (formation_id, node_host, node_port) then
            raise exception 'this node is registered as %:% in formation "%"', node.nodehost, node.nodeport, node.formationid
                using errcode = 'PA002';
        end if;
        return pgautofailover.answer(node.nodeid);
    end if;

    select * into other from pgautofailover.node n where n.nodehost = node_host and n.nodeport = node_port;
    if found then
        -- a create that never got as far as having data doesn't block the next one
        if other.reportedstate in ('init', 'wait_standby') and other.sysidentifier is null then
            delete from pgautofailover.node n where n.nodeid = other.nodeid;
        else
            raise exception '%:% is registered as node % ("%") of formation "%"',
                node_host, node_port, other.nodeid, other.nodename, other.formationid using errcode = 'PA003';
        end if;
    end if;

    -- what a group without nodes still knows is of a cluster that is gone: another one has timelines of its own
    if not exists (select from pgautofailover.node n where n.formationid = formation_id and n.groupid = group_id) then
        delete from pgautofailover."group" g where g.formationid = formation_id and g.groupid = group_id;
    end if;
    insert into pgautofailover."group" (formationid, groupid) values (formation_id, group_id) on conflict do nothing;
    insert into pgautofailover_private.replication_secret (formationid, groupid) values (formation_id, group_id)
    on conflict do nothing;

    select * into other from pgautofailover.node n
    where n.formationid = formation_id and n.groupid = group_id and n.sysidentifier <> system_identifier limit 1;
    if found then
        raise exception 'its system identifier % differs from that of node % ("%"), %',
            system_identifier, other.nodeid, other.nodename, other.sysidentifier using errcode = 'PA004';
    end if;
    if dbname is not null then
        if not exists (select from pgautofailover.node n where n.formationid = formation_id) then
            update pgautofailover.formation f set dbname = register_node.dbname where f.formationid = formation_id;
        elsif dbname <> (select f.dbname from pgautofailover.formation f where f.formationid = formation_id) then
            raise exception 'formation "%" has database "%"', formation_id,
                (select f.dbname from pgautofailover.formation f where f.formationid = formation_id) using errcode = 'PA006';
        end if;
    end if;

    new_id := nextval(pg_get_serial_sequence('pgautofailover.node', 'nodeid'));
    if exists (select from pgautofailover.node n
               where n.formationid = formation_id and n.nodename = coalesce(node_name, 'node_' || new_id)) then
        raise exception 'formation "%" has a node named "%" already', formation_id,
            coalesce(node_name, 'node_' || new_id) using errcode = 'PA007';
    end if;
    insert into pgautofailover.node (nodeid, formationid, groupid, nodename, nodehost, nodeport, sysidentifier,
        identity, candidatepriority, replicationquorum)
    values (new_id, formation_id, group_id, coalesce(node_name, 'node_' || new_id), node_host, node_port,
        system_identifier, pgautofailover.identity_digest(node_identity), candidate_priority, replication_quorum)
    returning * into node;
    -- with a second standby there is a choice of how many commits wait for
    update pgautofailover.formation f set number_sync_standbys = 1
    where f.formationid = formation_id and f.number_sync_standbys = 0
      and (select count(*) from pgautofailover.node n where n.formationid = formation_id and n.groupid = group_id
           and n.replicationquorum) = 3;
    perform pgautofailover.log_event(node, null, format('Registered node %s "%s" (%s:%s) in formation "%s", group %s',
        node.nodeid, node.nodename, node.nodehost, node.nodeport, node.formationid, node.groupid));
    perform pgautofailover.notify_state(node);
    perform pg_notify('report', formation_id || '/' || group_id);
    return pgautofailover.answer(node.nodeid);
end $$;

-- One report. A report that changes nothing must not cost an fsync, nor wake anyone. What it doesn't know is kept:
-- a timeline of 0, a position of 0/0, a missing key.
create function pgautofailover.node_active(formation_id text, node_id bigint, report jsonb)
returns jsonb language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    old pgautofailover.node;
    new pgautofailover.node;
    is_streaming boolean := (report->>'streaming')::boolean;
    sysid numeric := (report->>'systemIdentifier')::numeric;
    new_sync boolean;
    group_id int;
    digest bytea := pgautofailover.identity_digest((report->>'identity')::uuid);
begin
    perform pgautofailover.refuse_in_recovery();
    -- Whoever has been the primary tells what is, or was, in force there; a standby has nothing to say about it. The
    -- group's row is written under the group's lock, taken before the node's row as by a decision: else the two could
    -- wait for each other.
    select g.groupid into group_id from pgautofailover."group" g join pgautofailover.node n using (formationid, groupid)
    where n.nodeid = node_id and n.formationid = formation_id and report ? 'syncInForce' and g.syncprimary = node_id
      and coalesce(g.syncinforce, 'null') <> report->'syncInForce';
    new_sync := found;
    if new_sync then
        perform pgautofailover.lock_group(formation_id, group_id);
    end if;
    select * into old from pgautofailover.node n where n.nodeid = node_id and n.formationid = formation_id for update;
    if not found or old.identity is distinct from digest then
        if exists (select from pgautofailover.removed_node r where r.identity = digest) then
            raise exception 'node % was removed from formation "%"', node_id, formation_id using errcode = 'PA010';
        end if;
        raise exception 'the monitor does not know node % of formation "%"', node_id, formation_id using errcode = 'PA012';
    end if;
    -- the keeper has been given goals that this database has forgotten: it decides nothing before monitor.ts recover
    if (report->>'goalVersion')::bigint > old.goalversion then
        insert into pgautofailover.recovery (why) values (format('node %s ("%s") knows later goals, so its database was restored from the past',
            old.nodeid, old.nodename)) on conflict do nothing;
        return pgautofailover.answer(node_id);
    end if;
    if (report->>'reportNo')::bigint <= old.reportno then
        raise exception 'a later report of node % has been recorded', node_id using errcode = 'PA011';
    end if;
    if sysid <> coalesce(old.sysidentifier, 0) and exists (select from pgautofailover.node n
            where n.formationid = formation_id and n.groupid = old.groupid and n.sysidentifier <> sysid) then
        raise exception 'system identifier % of node % is not that of its group', sysid, node_id using errcode = 'PA004';
    end if;

    new := old;
    new.reporttime := clock_timestamp();
    new.reportno := (report->>'reportNo')::bigint;
    -- a node that doesn't know its goal yet acts on an older one, and may be elsewhere by the time this arrives: a goal that
    -- has come back meanwhile must not seem reached, nor a promise that was taken back seem given
    -- but a primary that has fenced itself, and is told to stop, starts nothing before it is told otherwise
    if (report->>'goalVersion')::bigint >= old.goalversion or (report->>'state' = 'demote_timeout'
            and not (report->>'pgIsRunning')::boolean and old.goalstate in ('draining', 'demote_timeout', 'demoted')) then
        new.reportedstate := report->>'state';
        new.reportedversion := old.goalversion;
    end if;
    new.reportedpgisrunning := (report->>'pgIsRunning')::boolean;
    new.reportedrepstate := report->>'syncState';
    new.reportedtli := coalesce(nullif((report->>'timeline')::int, 0), old.reportedtli);
    new.reportedlsn := coalesce(nullif((report->>'lsn')::pg_lsn, '0/0'), old.reportedlsn);
    -- a server that has crashed since it gave its word still has all that it had then, and replays it again
    if old.reportedstate in ('report_lsn', 'join_secondary', 'fast_forward')
       and new.reportedstate in ('report_lsn', 'join_secondary', 'fast_forward') and new.reportedtli = old.reportedtli then
        new.reportedlsn := greatest(old.reportedlsn, new.reportedlsn);
    end if;
    new.inrecovery := coalesce((report->>'inRecovery')::boolean, old.inrecovery);
    new.streaming := is_streaming;
    new.startfailures := (report->>'startFailures')::int;
    new.shutdown := nullif(report->'shutdown', 'null');
    if (report->>'goalVersion')::bigint < old.goalversion then
        new.shutdown := null;
    end if;
    new.fencems := coalesce((report->>'fenceMs')::int, old.fencems);
    new.promotion := case when report ? 'promotion' then nullif(report->'promotion', 'null') else old.promotion end;
    new.notsentto := '{}';
    if report ? 'sendsTo' then
        new.notsentto := coalesce((
            select jsonb_object_agg(n.nodeid, coalesce(old.notsentto->(n.nodeid::text), to_jsonb(new.reporttime)))
            from pgautofailover.node n
            where n.formationid = formation_id and n.groupid = old.groupid and n.nodeid <> node_id
              and not report->'sendsTo' @> to_jsonb(n.nodeid)), '{}');
    end if;
    new.sysidentifier := coalesce(sysid, old.sysidentifier);

    if not new_sync and (old.reportedstate, old.reportedversion, old.reportedpgisrunning, old.reportedrepstate, old.reportedtli, old.inrecovery,
            old.streaming, old.startfailures, old.promotion, old.shutdown, old.fencems, old.notsentto, old.sysidentifier)
        is not distinct from (new.reportedstate, new.reportedversion, new.reportedpgisrunning, new.reportedrepstate, new.reportedtli, new.inrecovery,
            new.streaming, new.startfailures, new.promotion, new.shutdown, new.fencems, new.notsentto, new.sysidentifier) then
        set local synchronous_commit = off;
        update pgautofailover.node n set reporttime = new.reporttime, reportno = new.reportno, fullreport = new.reportno,
            reportedlsn = new.reportedlsn
        where n.nodeid = node_id;
        -- goals that wait for a position are decided with the heartbeat; who only asks for a goal that it doesn't know yet
        -- has said nothing, and each notification wakes the sessions of all keepers
        if (report->>'goalVersion')::bigint = old.goalversion and (old.reportedstate <> old.goalstate
                or old.reportedstate in ('catchingup', 'wait_primary', 'fast_forward')) then
            perform pg_notify('report', formation_id || '/' || old.groupid);
        end if;
        return pgautofailover.answer(node_id, report->>'secretId');
    end if;

    if new_sync then
        update pgautofailover."group" g set syncinforce = nullif(report->'syncInForce', 'null')
        where g.formationid = formation_id and g.groupid = old.groupid and g.syncprimary = node_id;
    end if;
    if old.reportedstate <> new.reportedstate then
        new.statechangetime := new.reporttime;
    end if;
    if (report->>'lsn')::pg_lsn <> '0/0' then
        new.walreporttime := new.reporttime;
    end if;
    new.stalledsince := case when not is_streaming then coalesce(old.stalledsince, new.reporttime) end;
    new.promisedsince := case when new.reportedstate in ('report_lsn', 'join_secondary', 'fast_forward',
        'prepare_promotion', 'stop_replication') then coalesce(old.promisedsince, new.reporttime) end;
    update pgautofailover.node n set
        reporttime = new.reporttime, reportno = new.reportno, fullreport = new.reportno, reportedstate = new.reportedstate,
        reportedversion = new.reportedversion,
        statechangetime = new.statechangetime, reportedpgisrunning = new.reportedpgisrunning,
        reportedrepstate = new.reportedrepstate, reportedtli = new.reportedtli, reportedlsn = new.reportedlsn,
        walreporttime = new.walreporttime, inrecovery = new.inrecovery, streaming = new.streaming,
        stalledsince = new.stalledsince, promisedsince = new.promisedsince, startfailures = new.startfailures,
        promotion = new.promotion, shutdown = new.shutdown, fencems = new.fencems, notsentto = new.notsentto, sysidentifier = new.sysidentifier
    where n.nodeid = node_id;
    if old.reportedstate <> new.reportedstate then
        perform pgautofailover.log_event(new, null, format('New state is reported by node %s "%s" (%s:%s): "%s"',
            new.nodeid, new.nodename, new.nodehost, new.nodeport, new.reportedstate));
    end if;
    if old.reportedpgisrunning and not new.reportedpgisrunning then
        perform pgautofailover.log_event(new, null, format('Node %s "%s" (%s:%s) reports that PostgreSQL is not running',
            new.nodeid, new.nodename, new.nodehost, new.nodeport));
    elsif new.reportedpgisrunning and not old.reportedpgisrunning and new.reportedstate = old.reportedstate then
        perform pgautofailover.log_event(new, null, format('Node %s "%s" (%s:%s) reports that PostgreSQL is running again',
            new.nodeid, new.nodename, new.nodehost, new.nodeport));
    end if;
    perform pgautofailover.notify_state(new);
    perform pg_notify('report', formation_id || '/' || new.groupid);
    return pgautofailover.answer(node_id, report->>'secretId');
end $$;

-- A report that is the same as this node's last full one but for its number and position, by a keeper to which the answer
-- with this token holds, as far as the monitor's process has looked. False: nothing was recorded, and a full report is
-- wanted. Each server process is woken once a second, after a thousand others, with nothing of it in the processor's caches:
-- this must touch little.
create function pgautofailover.heartbeat(node_id bigint, node_identity uuid, report_no bigint, full_report bigint, token text,
    lsn pg_lsn)
returns boolean language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    set local synchronous_commit = off;
    update pgautofailover.node n set reporttime = clock_timestamp(), reportno = report_no,
        reportedlsn = coalesce(nullif(lsn, '0/0'), n.reportedlsn)
    where n.nodeid = node_id and n.identity = pgautofailover.identity_digest(node_identity)
      and n.fullreport = full_report and n.reportno < report_no and n.answertoken = token
      and n.reportedstate = n.goalstate and n.goalstate in ('single', 'primary', 'secondary')
      and not exists (select from pgautofailover.recovery);
    return found;
end $$;

-- A sentence of a node's keeper about what is not the monitor's business, such as its hooks.
create function pgautofailover.report_event(formation_id text, node_id bigint, node_identity uuid, description text)
returns void language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    node pgautofailover.node;
begin
    select * into node from pgautofailover.node n
    where n.formationid = formation_id and n.nodeid = node_id and n.identity = pgautofailover.identity_digest(node_identity);
    if not found then
        raise exception 'the monitor does not know node % of formation "%"', node_id, formation_id using errcode = 'PA012';
    end if;
    perform pgautofailover.log_event(node, null, format('Node %s "%s": %s', node.nodeid, node.nodename,
        left(regexp_replace(coalesce(description, ''), '[[:cntrl:]]+', ' ', 'g'), 500)));
end $$;

-- Removes a node. Its keeper stops PostgreSQL first and confirms; force: at once, the node is gone for good.
create function pgautofailover.remove_node(node_id bigint, force boolean default false)
returns boolean language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    node pgautofailover.node;
begin
    select * into node from pgautofailover.node n where n.nodeid = node_id;
    if not found then
        return false;
    end if;
    perform pgautofailover.lock_group(node.formationid, node.groupid);
    select * into node from pgautofailover.node n where n.nodeid = node_id for update;
    if not found then
        return false;
    end if;
    if node.goalstate in ('single', 'wait_primary', 'primary', 'apply_settings', 'draining', 'demote_timeout',
                           'stop_replication', 'prepare_promotion', 'fast_forward')
       and exists (select from pgautofailover.node n where n.formationid = node.formationid
                   and n.groupid = node.groupid and n.nodeid <> node_id and n.goalstate <> 'dropped') then
        raise exception 'node % ("%") is the primary, or about to be, and the group has another node', node.nodeid, node.nodename
            using errcode = 'PA020';
    end if;
    if not force and node.goalstate in ('report_lsn', 'join_secondary') then
        raise exception 'node % ("%") takes part in the failover that is under way', node.nodeid, node.nodename
            using errcode = 'PA021';
    end if;
    if force then
        perform pgautofailover.log_event(node, null, format('Removed node %s "%s" (%s:%s) without waiting for it',
            node.nodeid, node.nodename, node.nodehost, node.nodeport));
        delete from pgautofailover.node n where n.nodeid = node_id;
    elsif node.goalstate <> 'dropped' then
        update pgautofailover.node n set goalstate = 'dropped', goalversion = n.goalversion + 1,
            goaltime = clock_timestamp(), statechangetime = clock_timestamp() where n.nodeid = node_id returning * into node;
        perform pgautofailover.log_event(node, null, format('Removing node %s "%s" (%s:%s)',
            node.nodeid, node.nodename, node.nodehost, node.nodeport));
    end if;
    perform pgautofailover.notify_state(node);
    perform pg_notify('report', node.formationid || '/' || node.groupid);
    return true;
end $$;

-- A group as the rules see it, everything read at one moment. Ages are on this server's clock.
create function pgautofailover.group_view(formation_id text default 'default', group_id int default 0)
returns jsonb language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$ begin
    return (select jsonb_build_object(
        'formation', g.formationid, 'groupId', g.groupid,
        'clockMs', extract(epoch from now_.at) * 1000,
        'sync', pgautofailover.assigned_set(g), 'pending', g.syncpending, 'inForce', g.syncinforce,
        'policy', pgautofailover.policy(f),
        'settings', jsonb_build_object('durability', f.durability, 'numberSyncStandbys', f.number_sync_standbys,
            'strictFencing', f.strict_fencing, 'maximumLagBytes', f.maximum_lag_on_failover::text),
        'request', case when g.requesttime > now_.at - interval '60 s' or (g.request->>'planned')::boolean and exists (
                select from pgautofailover.node d where d.formationid = g.formationid and d.groupid = g.groupid
                and d.goalstate = 'draining')
            then g.request - 'maintenance' end,
        'disputed', g.disputed, 'blocked', g.blocked,
        'history', (select coalesce(jsonb_agg(jsonb_build_object('timeline', h.timeline, 'parent', h.parent,
                'forkLsn', (h.forklsn - '0/0'::pg_lsn)::text) order by h.timeline), '[]')
            from pgautofailover.timeline_history h where h.formationid = g.formationid and h.groupid = g.groupid),
        'nodes', (select coalesce(jsonb_agg(jsonb_build_object(
                'nodeId', n.nodeid, 'name', n.nodename, 'host', n.nodehost, 'port', n.nodeport,
                'reported', n.reportedstate, 'confirmed', n.reportedversion >= n.goalversion, 'goal', n.goalstate, 'pgRunning', n.reportedpgisrunning,
                'startFailures', n.startfailures,
                'reportAgeMs', greatest(0, extract(epoch from now_.at - n.reporttime) * 1000),
                'health', n.health,
                'healthAgeMs', greatest(0, extract(epoch from now_.at - n.healthchecktime) * 1000),
                'timeline', n.reportedtli, 'lsn', (n.reportedlsn - '0/0'::pg_lsn)::text,
                'inRecovery', n.inrecovery, 'streaming', n.streaming,
                'stalledMs', coalesce(greatest(0, extract(epoch from now_.at - n.stalledsince) * 1000), 0),
                'notSentToMs', coalesce((select greatest(0, extract(epoch from
                    now_.at - (p.notsentto->>(n.nodeid::text))::timestamptz) * 1000)
                    from pgautofailover.node p where p.nodeid = g.syncprimary), 0),
                'promisedMs', case when n.promisedsince is not null then
                    greatest(0, extract(epoch from now_.at - n.promisedsince) * 1000) end,
                'goalAgeMs', greatest(0, extract(epoch from now_.at - n.goaltime) * 1000),
                'passedOver', n.passedover, 'fetchFrom', n.fetchfrom, 'maintenance', n.maintenance,
                'shutdown', case when n.shutdown is not null then jsonb_build_object('tookMs', n.shutdown->'tookMs',
                    'lsn', ((n.shutdown->>'lsn')::pg_lsn - '0/0'::pg_lsn)::text) end, 'fenceMs', n.fencems,
                'promotion', case when n.promotion is not null then jsonb_build_object('timeline', n.promotion->'timeline',
                    'forkLsn', ((n.promotion->>'forkLsn')::pg_lsn - '0/0'::pg_lsn)::text) end,
                'candidatePriority', n.candidatepriority, 'replicationQuorum', n.replicationquorum,
                'reportNo', n.reportno::text, 'decidedReport', n.decidedreport::text)
                order by n.nodeid), '[]')
            from pgautofailover.node n where n.formationid = g.formationid and n.groupid = g.groupid))
    from pgautofailover."group" g join pgautofailover.formation f using (formationid),
        (select clock_timestamp() as at) now_
    where g.formationid = formation_id and g.groupid = group_id);
end $$;

-- For the monitor's process: the group under its lock, until the transaction ends. Null: there is none, or nothing is to be
-- decided before monitor.ts recover.
create function pgautofailover.locked_view(formation_id text, group_id int) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    perform pgautofailover.lock_group(formation_id, group_id);
    if exists (select from pgautofailover.recovery) then
        return null;
    end if;
    -- a clock that was set back leaves times in the future, by which nobody would grow old until it is there again
    update pgautofailover."group" g set requesttime = clock_timestamp()
    where g.formationid = formation_id and g.groupid = group_id and g.requesttime > clock_timestamp();
    update pgautofailover.node n set reporttime = least(n.reporttime, now_.at), goaltime = least(n.goaltime, now_.at),
        healthchecktime = least(n.healthchecktime, now_.at), stalledsince = least(n.stalledsince, now_.at),
        promisedsince = least(n.promisedsince, now_.at), notsentto = '{}'
    from (select clock_timestamp() as at) now_
    where n.formationid = formation_id and n.groupid = group_id
      and (greatest(n.reporttime, n.goaltime, n.healthchecktime, n.stalledsince, n.promisedsince) > now_.at
        or exists (select from jsonb_each_text(n.notsentto) as since where since.value::timestamptz > now_.at));
    return pgautofailover.group_view(formation_id, group_id);
end $$;

-- The node that an operator names.
create function pgautofailover.node_named(formation_id text, node_name text) returns pgautofailover.node
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    node pgautofailover.node;
begin
    select * into node from pgautofailover.node n where n.formationid = formation_id and n.nodename = node_name;
    if not found then
        raise exception 'formation "%" has no node "%"', formation_id, node_name using errcode = 'PA008';
    end if;
    return node;
end $$;

-- Asks for a failover, or planned: for a switchover, in which the primary hands over; the monitor's process carries it
-- out as soon as a standby can take over. maintenance: leave this primary alone afterwards.
create function pgautofailover.request_failover(formation_id text, group_id int, target bigint, allow_data_loss boolean,
    planned boolean default false, maintenance bigint default null)
returns boolean language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    node pgautofailover.node;
    may text[];
begin
    if not exists (select from pgautofailover."group" g where g.formationid = formation_id and g.groupid = group_id) then
        raise exception 'formation "%" has no group %', formation_id, group_id using errcode = 'PA001';
    end if;
    perform pgautofailover.lock_group(formation_id, group_id);
    -- an old primary that waits for the new one to come back has data too, though not all of it
    may := case when planned then array['secondary'] else array['secondary', 'catchingup', 'report_lsn', 'join_secondary']
        || case when allow_data_loss then array['demoted'] else array[]::text[] end end;
    if planned and exists (select from pgautofailover."group" g where g.formationid = formation_id and g.groupid = group_id
            and (g.request->>'planned')::boolean and g.requesttime > clock_timestamp() - interval '60 s') then
        raise exception 'a switchover of group % of formation "%" is under way', group_id, formation_id using errcode = 'PA031';
    end if;
    if (select count(*) from pgautofailover.node n where n.formationid = formation_id and n.groupid = group_id
        and n.goalstate = any (may) and (not planned or n.candidatepriority > 0 or n.nodeid = target)) = 0 then
        raise exception 'group % of formation "%" has no standby that could take over', group_id, formation_id using errcode = 'PA030';
    end if;
    if planned and not exists (select from pgautofailover.node n where n.formationid = formation_id and n.groupid = group_id
            and n.goalstate in ('primary', 'apply_settings')) then
        raise exception 'group % of formation "%" has no primary with a healthy secondary, which could hand over', group_id,
            formation_id using errcode = 'PA034';
    end if;
    select * into node from pgautofailover.node n where n.formationid = formation_id and n.groupid = group_id
        and n.goalstate in ('prepare_promotion', 'stop_replication', 'fast_forward') limit 1;
    -- with --allow-data-loss another one may take its place: it may be gone with what nobody else has
    if found and not allow_data_loss then
        raise exception 'node % ("%") is being promoted already', node.nodeid, node.nodename using errcode = 'PA031';
    end if;
    select * into node from pgautofailover.node n where n.nodeid = target;
    if found and node.goalstate in ('single', 'wait_primary', 'primary', 'apply_settings') then
        raise exception 'node % ("%") is the primary', node.nodeid, node.nodename using errcode = 'PA032';
    end if;
    if found and node.goalstate <> all (may) then
        raise exception 'node % ("%") is no standby that could take over: its goal is "%"', node.nodeid, node.nodename,
            node.goalstate using errcode = 'PA030';
    end if;
    update pgautofailover."group" g set requesttime = clock_timestamp(),
        request = jsonb_build_object('target', target, 'allowDataLoss', allow_data_loss, 'planned', planned,
            'maintenance', maintenance)
    where g.formationid = formation_id and g.groupid = group_id;
    select * into node from pgautofailover.node n where n.formationid = formation_id and n.groupid = group_id
        and (n.nodeid = target or target is null) order by n.nodeid limit 1;
    perform pgautofailover.log_event(node, null, format('A %s of group %s was asked for%s%s',
        case when planned then 'switchover' else 'failover' end, group_id,
        case when target is not null then format(', to node %s "%s"', node.nodeid, node.nodename) else '' end,
        case when allow_data_loss then ', and may lose commits' else '' end));
    perform pg_notify('report', formation_id || '/' || group_id);
    return true;
end $$;

create function pgautofailover.perform_failover(formation_id text default 'default', group_id int default 0,
    allow_data_loss boolean default false)
returns boolean language sql security definer set search_path = pg_catalog, pg_temp as $$
    select pgautofailover.request_failover(formation_id, group_id, null, allow_data_loss);
$$;

create function pgautofailover.perform_promotion(formation_id text, node_name text, allow_data_loss boolean default false)
returns boolean language sql security definer set search_path = pg_catalog, pg_temp as $$
    select pgautofailover.request_failover(formation_id, n.groupid, n.nodeid, allow_data_loss)
    from pgautofailover.node_named(formation_id, node_name) n;
$$;

create function pgautofailover.perform_switchover(formation_id text default 'default', group_id int default 0,
    node_name text default null)
returns boolean language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    target pgautofailover.node;
begin
    if node_name is not null then
        target := pgautofailover.node_named(formation_id, node_name);
        if target.groupid <> group_id then
            raise exception 'node % ("%") belongs to group %, not %', target.nodeid, node_name, target.groupid, group_id
                using errcode = 'PA008';
        end if;
    end if;
    return pgautofailover.request_failover(formation_id, group_id, target.nodeid, false, true);
end $$;

-- An operator wants this node left alone: the primary leaves it out of its set first. The primary itself hands over first,
-- with allow_failover.
create function pgautofailover.start_maintenance(node_id bigint, allow_failover boolean default false)
returns boolean language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    node pgautofailover.node;
begin
    select * into node from pgautofailover.node n where n.nodeid = node_id;
    if not found then
        raise exception 'there is no node %', node_id using errcode = 'PA008';
    end if;
    perform pgautofailover.lock_group(node.formationid, node.groupid);
    select * into strict node from pgautofailover.node n where n.nodeid = node_id;
    if node.maintenance then
        return true;
    end if;
    if node.goalstate in ('primary', 'apply_settings') then
        if not allow_failover then
            raise exception 'node % ("%") is the primary', node.nodeid, node.nodename using errcode = 'PA035';
        end if;
        return pgautofailover.request_failover(node.formationid, node.groupid, null, false, true, node.nodeid);
    end if;
    if node.goalstate not in ('secondary', 'catchingup', 'demoted') then
        raise exception 'node % ("%") can''t be left alone now: its goal is "%"', node.nodeid, node.nodename, node.goalstate
            using errcode = 'PA036';
    end if;
    if not exists (select from pgautofailover.node n where n.formationid = node.formationid and n.groupid = node.groupid
            and n.goalstate in ('single', 'wait_primary', 'primary', 'apply_settings')) then
        raise exception 'group % of formation "%" has no primary, and may need node % ("%")', node.groupid, node.formationid,
            node.nodeid, node.nodename using errcode = 'PA036';
    end if;
    if node.replicationquorum and (select f.durability = 'protection' from pgautofailover.formation f
            where f.formationid = node.formationid)
       and not exists (select from pgautofailover.node n where n.formationid = node.formationid and n.groupid = node.groupid
            and n.nodeid <> node.nodeid and n.goalstate = 'secondary' and n.replicationquorum and not n.maintenance) then
        raise exception 'node % ("%") is the last standby that commits can wait for, as protection demands', node.nodeid,
            node.nodename using errcode = 'PA037';
    end if;
    update pgautofailover.node n set maintenance = true where n.nodeid = node_id returning * into node;
    perform pgautofailover.log_event(node, null, format('Maintenance of node %s "%s" was asked for', node.nodeid, node.nodename));
    perform pg_notify('report', node.formationid || '/' || node.groupid);
    return true;
end $$;

create function pgautofailover.stop_maintenance(node_id bigint)
returns boolean language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    node pgautofailover.node;
begin
    select * into node from pgautofailover.node n where n.nodeid = node_id;
    if not found then
        raise exception 'there is no node %', node_id using errcode = 'PA008';
    end if;
    perform pgautofailover.lock_group(node.formationid, node.groupid);
    update pgautofailover.node n set maintenance = false where n.nodeid = node_id and n.maintenance returning * into node;
    if not found then
        return false;
    end if;
    perform pgautofailover.log_event(node, null, format('Maintenance of node %s "%s" is over', node.nodeid, node.nodename));
    perform pg_notify('report', node.formationid || '/' || node.groupid);
    return true;
end $$;

create function pgautofailover.set_node_candidate_priority(formation_id text, node_name text, candidate_priority int)
returns boolean language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    node pgautofailover.node := pgautofailover.node_named(formation_id, node_name);
begin
    if coalesce(candidate_priority not between 0 and 100, true) then
        raise exception 'a candidate priority is a number from 0 to 100, not %', candidate_priority using errcode = 'PA009';
    end if;
    perform pgautofailover.lock_group(formation_id, node.groupid);
    update pgautofailover.node n set candidatepriority = candidate_priority where n.nodeid = node.nodeid returning * into node;
    perform pgautofailover.log_event(node, null, format('Candidate priority of node %s "%s" is %s now',
        node.nodeid, node.nodename, candidate_priority));
    perform pg_notify('report', formation_id || '/' || node.groupid);
    return true;
end $$;

create function pgautofailover.set_node_replication_quorum(formation_id text, node_name text, replication_quorum boolean)
returns boolean language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    node pgautofailover.node := pgautofailover.node_named(formation_id, node_name);
begin
    perform pgautofailover.lock_group(formation_id, node.groupid);
    update pgautofailover.node n set replicationquorum = replication_quorum where n.nodeid = node.nodeid returning * into node;
    perform pgautofailover.log_event(node, null, format('Replication quorum of node %s "%s" is %s now',
        node.nodeid, node.nodename, replication_quorum::text));
    perform pg_notify('report', formation_id || '/' || node.groupid);
    return true;
end $$;

-- Sets settings of a formation, all of them or none; the table's constraints refuse values, and combinations, that would
-- break a promise.
create function pgautofailover.set_formation(formation_id text, settings jsonb)
returns boolean language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    one record;
    broken text;
    names text;
    wanted text;
    changes text;
begin
    for one in select * from jsonb_each_text(settings) loop
        if one.key <> all ('{number_sync_standbys,durability,strict_fencing,maximum_lag_on_failover,heartbeat_ms,
                network_partition_timeout_ms,fence_stop_timeout_ms,node_timeout_ms,unreachable_primary_timeout_ms,postgres_timeout_ms,
                fast_forward_timeout_ms,switchover_timeout_ms,caught_up_bytes}'::text[]) then
            raise exception 'a formation has no setting "%"', one.key using errcode = 'PA009';
        end if;
    end loop;
    select string_agg(key, ', ' order by key), string_agg(coalesce(value, 'null'), ', ' order by key),
        string_agg(format('%I = %L', key, value), ', ') into names, wanted, changes
    from jsonb_each_text(settings);
    if names is null then
        raise exception 'no setting is given' using errcode = 'PA009';
    end if;
    for one in select g.groupid from pgautofailover."group" g where g.formationid = formation_id order by 1 loop
        perform pgautofailover.lock_group(formation_id, one.groupid);
    end loop;
    begin
        execute format('update pgautofailover.formation f set %s where f.formationid = $1 returning 1', changes)
            into strict one using formation_id;
    exception
        when no_data_found then
            raise exception 'formation "%" does not exist', formation_id using errcode = 'PA001';
        when check_violation then
            get stacked diagnostics broken = constraint_name;
            raise exception '% can''t be % here: %', names, wanted, case broken
                when 'fence_before_failover' then 'node_timeout_ms must be more than network_partition_timeout_ms +'
                    ' fence_stop_timeout_ms, which a fenced primary may need to stop, or two nodes could take writes'
                when 'fence_after_heartbeat' then 'network_partition_timeout_ms must be at least twice heartbeat_ms,'
                    ' or one late report would stop a primary'
                when 'unreachable_after_dead' then 'unreachable_primary_timeout_ms must not be less than node_timeout_ms'
                when 'formation_durability_check' then 'it is protection, availability or performance'
                when 'formation_heartbeat_ms_check' then 'it is a number from 100 to 10000'
                when 'formation_fence_stop_timeout_ms_check' then 'it is 400 or more'
                when 'formation_postgres_timeout_ms_check' then 'it is 500 or more'
                when 'formation_fast_forward_timeout_ms_check' then 'it is 1000 or more'
                when 'formation_switchover_timeout_ms_check' then 'it is 1000 or more'
                else 'it is 0 or more' end using errcode = 'PA009';
        when invalid_text_representation or numeric_value_out_of_range or not_null_violation then
            raise exception '% can''t be "%": %', names, wanted, sqlerrm using errcode = 'PA009';
    end;
    for one in select distinct on (n.groupid) n as node from pgautofailover.node n where n.formationid = formation_id
            order by n.groupid, n.nodeid loop
        perform pgautofailover.log_event(one.node, null, format('Setting %s of formation "%s" is "%s" now', key, formation_id, value))
        from jsonb_each_text(settings) order by key;
        perform pgautofailover.notify_state(one.node);
        perform pg_notify('report', formation_id || '/' || (one.node).groupid);
    end loop;
    return true;
end $$;

create function pgautofailover.set_formation(formation_id text, setting text, value text)
returns boolean language sql security definer set search_path = pg_catalog, pg_temp as $$
    select pgautofailover.set_formation(formation_id, jsonb_build_object(coalesce(setting, ''), value));
$$;

create function pgautofailover.set_formation_number_sync_standbys(formation_id text, number_sync_standbys int)
returns boolean language sql security definer set search_path = pg_catalog, pg_temp as $$
    select pgautofailover.set_formation(formation_id, 'number_sync_standbys', number_sync_standbys::text);
$$;

-- Gives the nodes of a group another password to replicate with. Each takes it up with its next report, the primary makes
-- it the role's; what streams goes on. Left out: a generated one.
create function pgautofailover.set_replication_password(formation_id text, group_id int, password text default null)
returns boolean language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    node pgautofailover.node;
begin
    if password is not null and (password = '' or password ~ '[\n\r]') then
        raise exception 'a password is one line, and not empty' using errcode = 'PA009';
    end if;
    select * into node from pgautofailover.node n
    where n.formationid = formation_id and n.groupid = group_id order by n.nodeid limit 1;
    if not found then
        raise exception 'formation "%" has no nodes in group %', formation_id, group_id using errcode = 'PA001';
    end if;
    perform pgautofailover.lock_group(formation_id, group_id);
    delete from pgautofailover_private.replication_secret s where s.formationid = formation_id and s.groupid = group_id;
    if password is null then
        insert into pgautofailover_private.replication_secret (formationid, groupid) values (formation_id, group_id);
    else
        insert into pgautofailover_private.replication_secret (formationid, groupid, password)
        values (formation_id, group_id, password);
    end if;
    perform pgautofailover.log_event(node, null, format('The replication password of group %s was changed', group_id));
    return true;
end $$;

-- An operator's word on which timeline is the group's, where the monitor can't know: the one that this node is on. The
-- history ends with it then, and the group goes on with this node.
create function pgautofailover.accept_timeline(formation_id text, group_id int, node_name text)
returns boolean language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    node pgautofailover.node := pgautofailover.node_named(formation_id, node_name);
    known pgautofailover.timeline_history;
    parent pgautofailover.timeline_history;
    last_timeline int;
    fork pg_lsn;
    silence interval;
    patience interval := (select f.node_timeout_ms * interval '1 ms' from pgautofailover.formation f where f.formationid = formation_id);
begin
    if node.groupid <> group_id then
        raise exception 'node % ("%") belongs to group %, not %', node.nodeid, node.nodename, node.groupid, group_id
            using errcode = 'PA008';
    end if;
    perform pgautofailover.lock_group(formation_id, group_id);
    select * into strict node from pgautofailover.node n where n.nodeid = node.nodeid;
    select max(h.timeline) into last_timeline from pgautofailover.timeline_history h
    where h.formationid = formation_id and h.groupid = group_id;
    -- a history has a clear end when whoever takes writes is heard of, or if nobody does, any node at all, on it
    if not (select g.disputed from pgautofailover."group" g where g.formationid = formation_id and g.groupid = group_id)
       and (last_timeline is null or exists (
            select from pgautofailover.node n
            where n.formationid = formation_id and n.groupid = group_id and n.reportedtli = last_timeline
              and n.reporttime > clock_timestamp() - patience
              and (n.goalstate in ('single', 'wait_primary', 'primary', 'apply_settings') or not exists (
                    select from pgautofailover.node p where p.formationid = formation_id and p.groupid = group_id
                      and p.goalstate in ('single', 'wait_primary', 'primary', 'apply_settings'))))) then
        raise exception 'nothing is disputed in group % of formation "%"%', group_id, formation_id,
            coalesce(format(': it is on timeline %s', last_timeline), '') using errcode = 'PA033';
    end if;
    silence := clock_timestamp() - node.reporttime;
    if silence >= patience then
        raise exception 'node % ("%") has not reported for % s', node.nodeid, node.nodename,
            round(extract(epoch from silence)) using errcode = 'PA033';
    end if;
    if not node.reportedpgisrunning or node.reportedtli = 0 or node.goalstate = 'dropped' then
        raise exception 'node % ("%") has no PostgreSQL that runs', node.nodeid, node.nodename using errcode = 'PA033';
    end if;
    select * into known from pgautofailover.timeline_history h
    where h.formationid = formation_id and h.groupid = group_id and h.timeline = node.reportedtli;
    if found and known.nodeid <> node.nodeid and not node.inrecovery
       and node.goalstate not in ('single', 'wait_primary', 'primary', 'apply_settings') then
        raise exception 'node % ("%") takes writes on timeline %, which the group has from node % ("%"): restart it as a standby and promote it, so that its timeline has a number of its own',
            node.nodeid, node.nodename, known.timeline, known.nodeid, known.nodename using errcode = 'PA033';
    end if;

    delete from pgautofailover.timeline_history h
    where h.formationid = formation_id and h.groupid = group_id and h.timeline > node.reportedtli;
    if node.promotion is not null and (node.promotion->>'timeline')::int = node.reportedtli then
        fork := (node.promotion->>'forkLsn')::pg_lsn;
    end if;
    select * into parent from pgautofailover.timeline_history h
    where h.formationid = formation_id and h.groupid = group_id and h.timeline < node.reportedtli
      and (fork is null or h.forklsn <= fork) order by h.timeline desc limit 1;
    -- where it left its parent isn't known: then nothing that others have on that one counts as part of it
    insert into pgautofailover.timeline_history (formationid, groupid, timeline, parent, forklsn, nodeid, nodename)
    values (formation_id, group_id, node.reportedtli, coalesce(parent.timeline, 0), coalesce(fork, parent.forklsn, '0/0'),
        node.nodeid, node.nodename)
    on conflict on constraint timeline_history_pkey do update set nodeid = excluded.nodeid, nodename = excluded.nodename;
    update pgautofailover."group" g set disputed = false where g.formationid = formation_id and g.groupid = group_id;
    -- another one than the primary that is known: it takes over, and what only others have is given up
    if node.goalstate in ('secondary', 'catchingup', 'report_lsn', 'join_secondary') then
        update pgautofailover."group" g set requesttime = clock_timestamp(),
            request = jsonb_build_object('target', node.nodeid, 'allowDataLoss', true, 'planned', false)
        where g.formationid = formation_id and g.groupid = group_id;
    end if;
    perform pgautofailover.log_event(node, null, format('Timeline %s of node %s "%s" was accepted as that of group %s',
        node.reportedtli, node.nodeid, node.nodename, group_id));
    perform pg_notify('report', formation_id || '/' || group_id);
    return true;
end $$;

create function pgautofailover.current_state(formation_id text default 'default', only_group int default null)
returns table (formation_kind text, nodename text, nodehost text, nodeport int, group_id int, node_id bigint,
    current_group_state text, assigned_group_state text, candidate_priority int, replication_quorum boolean,
    reported_tli int, reported_lsn pg_lsn, reported_repstate text, health int, pg_is_running boolean, report_age interval,
    nodecluster text)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    select f.kind, n.nodename, n.nodehost, n.nodeport, n.groupid, n.nodeid, n.reportedstate, n.goalstate,
        n.candidatepriority, n.replicationquorum, n.reportedtli, n.reportedlsn, n.reportedrepstate, n.health,
        n.reportedpgisrunning, clock_timestamp() - n.reporttime, n.nodecluster
    from pgautofailover.formation f join pgautofailover.node n using (formationid)
    where f.formationid = formation_id and n.groupid = coalesce(only_group, n.groupid) order by n.groupid, n.nodeid;
$$;

create function pgautofailover.last_events(formation_id text default 'default', count int default 10)
returns setof pgautofailover.event
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    select * from (select * from pgautofailover.event e where e.formationid = formation_id
                   order by e.eventid desc limit count) last order by eventid;
$$;

create function pgautofailover.synchronous_standby_names(formation_id text default 'default', group_id int default 0)
returns text language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    select case when g.syncnumber = 0 then '' else format('ANY %s (%s)', g.syncnumber,
        (select string_agg('pgautofailover_standby_' || m, ', ') from unnest(g.syncmembers) m)) end
    from pgautofailover."group" g where g.formationid = formation_id and g.groupid = group_id;
$$;

revoke execute on all functions in schema pgautofailover from public;
grant execute on function pgautofailover.register_node, pgautofailover.node_active, pgautofailover.heartbeat,
    pgautofailover.report_event, pgautofailover.remove_node,
    pgautofailover.current_state, pgautofailover.last_events, pgautofailover.synchronous_standby_names,
    pgautofailover.group_view, pgautofailover.perform_failover, pgautofailover.perform_promotion,
    pgautofailover.perform_switchover, pgautofailover.start_maintenance, pgautofailover.stop_maintenance,
    pgautofailover.set_node_candidate_priority, pgautofailover.set_node_replication_quorum, pgautofailover.set_formation(text, jsonb),
    pgautofailover.set_formation(text, text, text),
    pgautofailover.set_formation_number_sync_standbys, pgautofailover.set_replication_password,
    pgautofailover.accept_timeline to autoctl_node;
grant select on all tables in schema pgautofailover to autoctl_node;
