-- What a monitor that has lost its memory is told by the keepers (roles/monitor.ts recover).

-- While there is a row here the database knows less than the keepers: it records no report and decides nothing.
create table pgautofailover.recovery (
    one    boolean primary key default true check (one),
    since  timestamptz not null default clock_timestamp(),
    why    text not null
);

-- What each keeper knows, said again with each report that is refused.
create table pgautofailover.testimony (
    -- a digest, as in the table of nodes, and so it stands in what is kept
    identity  bytea primary key,
    at        timestamptz not null default clock_timestamp(),
    said      jsonb not null
);

create function pgautofailover.refuse_in_recovery() returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    reason text := (select r.why from pgautofailover.recovery r);
begin
    if reason is not null then
        raise exception 'this monitor waits to be recovered: %', reason using errcode = 'PA016';
    end if;
end $$;

-- A new node would be given the number of one that the monitor has yet to hear of.
create function pgautofailover.no_new_node_in_recovery() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    perform pgautofailover.refuse_in_recovery();
    return new;
end $$;
create trigger no_new_node_in_recovery before insert on pgautofailover.node
    for each statement execute function pgautofailover.no_new_node_in_recovery();

create function pgautofailover.testify(node_identity uuid, testimony jsonb) returns void
language sql security definer set search_path = pg_catalog, pg_temp as $$
    insert into pgautofailover.testimony as t (identity, said)
    select pgautofailover.identity_digest(node_identity), testimony || jsonb_build_object('identity',
        '\x' || encode(pgautofailover.identity_digest(node_identity), 'hex'))
    from pgautofailover.recovery
    on conflict (identity) do update set at = clock_timestamp(), said = excluded.said;
$$;

-- When anything was changed that all groups keep, in the numbers of events.
create table pgautofailover.roster (
    one      boolean primary key default true check (one),
    version  bigint not null
);
insert into pgautofailover.roster (version) values (0);
create function pgautofailover.roster_changed() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    update pgautofailover.roster r
    set version = nextval(pg_get_serial_sequence('pgautofailover.event', 'eventid'));
    return null;
end $$;
create trigger roster_changed after insert or delete or update of nodename, identity, groupid, formationid on pgautofailover.node
    for each statement execute function pgautofailover.roster_changed();
create trigger roster_changed after insert or delete or update on pgautofailover.formation
    for each statement execute function pgautofailover.roster_changed();

-- What a keeper keeps of the monitor's memory, for a monitor that has to be made anew: the rows of its group, and who
-- else there is. Each change of consequence logs an event of its group, or is one of the roster, so these number its
-- versions. Null: nothing is newer.
create function pgautofailover.group_memory(formation_id text, group_id int, known_version bigint) returns jsonb
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$ begin
    return (select jsonb_build_object(
        'version', v.version,
        'formations', (select jsonb_agg(to_jsonb(f) order by f.formationid) from pgautofailover.formation f),
        'roster', (select jsonb_agg(jsonb_build_object('formation', n.formationid, 'groupId', n.groupid,
                'nodeId', n.nodeid, 'name', n.nodename, 'identity', n.identity) order by n.nodeid)
            from pgautofailover.node n),
        'removed', (select coalesce(jsonb_agg(to_jsonb(r)), '[]') from pgautofailover.removed_node r),
        'group', to_jsonb(g),
        -- a JSON number may lose digits of it on the way
        'nodes', (select jsonb_agg(to_jsonb(n) || jsonb_build_object('sysidentifier', n.sysidentifier::text) order by n.nodeid)
            from pgautofailover.node n where n.formationid = formation_id and n.groupid = group_id),
        'timelines', (select coalesce(jsonb_agg(to_jsonb(h) order by h.timeline), '[]')
            from pgautofailover.timeline_history h where h.formationid = formation_id and h.groupid = group_id))
    from pgautofailover."group" g,
        (select greatest(max(e.eventid), (select r.version from pgautofailover.roster r)) as version
         from pgautofailover.event e where e.formationid = formation_id and e.groupid = group_id) v
    where g.formationid = formation_id and g.groupid = group_id and v.version > known_version);
end $$;

-- One row as a keeper has kept it; a column that it doesn't name gets its default.
create function pgautofailover.install_row(table_name text, kept jsonb) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    columns text := (
        select string_agg(quote_ident(a.attname), ', ') from pg_attribute a
        where a.attrelid = format('pgautofailover.%I', table_name)::regclass and a.attnum > 0 and not a.attisdropped
          and kept ? a.attname::text);
begin
    execute format('insert into pgautofailover.%I (%s) select %s from jsonb_populate_record(null::pgautofailover.%I, $1)', table_name, columns, columns, table_name) using kept;
end $$;

revoke execute on all functions in schema pgautofailover from public;
grant execute on function pgautofailover.testify, pgautofailover.group_memory to autoctl_node;
grant select on pgautofailover.recovery, pgautofailover.testimony to autoctl_node;
