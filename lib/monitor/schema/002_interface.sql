-- The rest of what operators ask in SQL, under the names that pg_auto_failover gives it.

create function pgautofailover.create_formation(formation_id text, kind text default 'pgsql', dbname text default 'postgres',
    opt_secondary boolean default true, number_sync_standbys int default 0, durability text default 'availability')
returns pgautofailover.formation language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    made pgautofailover.formation;
begin
    perform pgautofailover.check_name('formation', formation_id);
    perform pgautofailover.check_name('database', dbname);
    if kind is distinct from 'pgsql' then
        raise exception 'a formation is of kind pgsql, not "%"', kind using errcode = 'PA009';
    end if;
    if opt_secondary is not true then
        raise exception 'a formation has secondaries: opt_secondary can''t be %', opt_secondary using errcode = 'PA009';
    end if;
    insert into pgautofailover.formation (formationid, dbname) values (formation_id, create_formation.dbname)
    on conflict do nothing;
    if not found then
        raise exception 'formation "%" exists already', formation_id using errcode = 'PA014';
    end if;
    perform pgautofailover.set_formation(formation_id, 'number_sync_standbys', create_formation.number_sync_standbys::text);
    perform pgautofailover.set_formation(formation_id, 'durability', create_formation.durability);
    select * into strict made from pgautofailover.formation f where f.formationid = formation_id;
    return made;
end $$;

-- Its events stay.
create function pgautofailover.drop_formation(formation_id text)
returns boolean language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    nodes bigint;
begin
    perform pgautofailover.lock_group(g.formationid, g.groupid)
    from (select * from pgautofailover."group" g where g.formationid = formation_id order by g.groupid) g;
    -- keeps out whoever registers the first node of another group
    perform from pgautofailover.formation f where f.formationid = formation_id for update;
    if not found then
        raise exception 'formation "%" does not exist', formation_id using errcode = 'PA001';
    end if;
    select count(*) into nodes from pgautofailover.node n where n.formationid = formation_id;
    if nodes > 0 then
        raise exception 'formation "%" has % node%', formation_id, nodes, case when nodes > 1 then 's' else '' end
            using errcode = 'PA015';
    end if;
    delete from pgautofailover.formation f where f.formationid = formation_id;
    return true;
end $$;

create function pgautofailover.uri_encoded(value text) returns text
language sql immutable set search_path = pg_catalog, pg_temp as $$
    select coalesce(string_agg(case when chr(b.byte) ~ '[A-Za-z0-9_.~-]' then chr(b.byte)
        else '%' || upper(lpad(to_hex(b.byte), 2, '0')) end, '' order by b.at), '')
    from (select convert_to(value, getdatabaseencoding()) as bytes) v,
        lateral (select at, get_byte(v.bytes, at) as byte from generate_series(0, length(v.bytes) - 1) at) b;
$$;

-- What finds the node that takes writes among all nodes of a group; null: it has none.
create function pgautofailover.formation_uri(formation_id text default 'default', cluster_name text default 'default',
    sslmode text default 'prefer', sslrootcert text default '', sslcrl text default '', group_id int default 0)
returns text language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    select format('postgres://%s/%s?target_session_attrs=read-write&sslmode=%s%s%s',
        string_agg(format(case when n.nodehost like '%:%' then '[%s]:%s' else '%s:%s' end, n.nodehost, n.nodeport), ','
            order by n.nodeid),
        pgautofailover.uri_encoded(f.dbname), pgautofailover.uri_encoded(sslmode),
        case when sslrootcert <> '' then '&sslrootcert=' || pgautofailover.uri_encoded(sslrootcert) end,
        case when sslcrl <> '' then '&sslcrl=' || pgautofailover.uri_encoded(sslcrl) end)
    from pgautofailover.formation f join pgautofailover.node n using (formationid)
    where f.formationid = formation_id and n.groupid = group_id and n.nodecluster = cluster_name group by f.dbname;
$$;

create function pgautofailover.get_nodes(formation_id text default 'default', group_id int default null)
returns table (node_id bigint, node_name text, node_host text, node_port int, node_lsn pg_lsn, node_is_primary boolean)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    select n.nodeid, n.nodename, n.nodehost, n.nodeport, n.reportedlsn,
        n.goalstate in ('single', 'wait_primary', 'primary', 'apply_settings')
    from pgautofailover.node n
    where n.formationid = formation_id and n.groupid = coalesce(group_id, n.groupid) order by n.groupid, n.nodeid;
$$;

create function pgautofailover.get_other_nodes(nodeid bigint)
returns table (node_id bigint, node_name text, node_host text, node_port int, node_lsn pg_lsn, node_is_primary boolean)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    select o.* from pgautofailover.node n, pgautofailover.get_nodes(n.formationid, n.groupid) o
    where n.nodeid = get_other_nodes.nodeid and o.node_id <> n.nodeid;
$$;

create function pgautofailover.get_primary(formation_id text default 'default', group_id int default 0,
    out primary_node_id bigint, out primary_name text, out primary_host text, out primary_port int)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
begin
    select n.node_id, n.node_name, n.node_host, n.node_port
    into primary_node_id, primary_name, primary_host, primary_port
    from pgautofailover.get_nodes(formation_id, group_id) n where n.node_is_primary;
    if not found then
        raise exception 'group % of formation "%" has no node that takes writes', group_id, formation_id using errcode = 'PA030';
    end if;
end $$;

-- Of all formations.
create function pgautofailover.last_events(count int) returns setof pgautofailover.event
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    select * from (select * from pgautofailover.event e order by e.eventid desc limit count) last order by eventid;
$$;

create function pgautofailover.last_events(formation_id text, group_id int, count int) returns setof pgautofailover.event
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    select * from (select * from pgautofailover.event e where e.formationid = formation_id and e.groupid = group_id
                   order by e.eventid desc limit count) last order by eventid;
$$;

create function pgautofailover.remove_node(node_host text, node_port int, force boolean default false)
returns boolean language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    node_id bigint := (select n.nodeid from pgautofailover.node n where n.nodehost = node_host and n.nodeport = node_port);
begin
    if node_id is null then
        raise exception 'no node is registered as %:%', node_host, node_port using errcode = 'PA008';
    end if;
    return pgautofailover.remove_node(node_id, force);
end $$;

create function pgautofailover.remove_node(formation_id text, node_name text, force boolean default false)
returns boolean language sql security definer set search_path = pg_catalog, pg_temp as $$
    select pgautofailover.remove_node(n.nodeid, force) from pgautofailover.node_named(formation_id, node_name) n;
$$;

-- Another name or address; null: as it is. The other nodes hear of it with their next report.
create function pgautofailover.update_node_metadata(node_id bigint, node_name text default null, node_host text default null,
    node_port int default null)
returns boolean language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    node pgautofailover.node;
    taken text;
begin
    select * into node from pgautofailover.node n where n.nodeid = node_id;
    if found then
        perform pgautofailover.lock_group(node.formationid, node.groupid);
        select * into node from pgautofailover.node n where n.nodeid = node_id for update;
    end if;
    if not found then
        raise exception 'there is no node %', node_id using errcode = 'PA008';
    end if;
    node.nodename := coalesce(node_name, node.nodename);
    node.nodehost := coalesce(node_host, node.nodehost);
    node.nodeport := coalesce(node_port, node.nodeport);
    perform pgautofailover.check_name('node', node.nodename);
    perform pgautofailover.check_host(node.nodehost, node.nodeport);
    begin
        update pgautofailover.node n set nodename = node.nodename, nodehost = node.nodehost, nodeport = node.nodeport
        where n.nodeid = node_id;
    exception when unique_violation then
        get stacked diagnostics taken = constraint_name;
        if taken = 'node_formationid_nodename_key' then
            raise exception 'formation "%" has a node named "%" already', node.formationid, node.nodename using errcode = 'PA007';
        end if;
        raise exception 'another node is registered as %:%', node.nodehost, node.nodeport using errcode = 'PA003';
    end;
    perform pgautofailover.log_event(node, null, format('Node %s is "%s" at %s:%s now', node.nodeid, node.nodename,
        node.nodehost, node.nodeport));
    perform pgautofailover.notify_state(node);
    perform pg_notify('report', node.formationid || '/' || node.groupid);
    return true;
end $$;

revoke execute on all functions in schema pgautofailover from public;
grant execute on function pgautofailover.create_formation, pgautofailover.drop_formation, pgautofailover.formation_uri,
    pgautofailover.get_nodes, pgautofailover.get_other_nodes, pgautofailover.get_primary, pgautofailover.last_events(int),
    pgautofailover.last_events(text, int, int), pgautofailover.remove_node(text, int, boolean),
    pgautofailover.remove_node(text, text, boolean), pgautofailover.update_node_metadata to autoctl_node;
