-- What initdb has to be told, so that pg_upgrade finds two clusters of one kind.
select json_build_object(
  'encoding', pg_encoding_to_char(d.encoding), 'collate', d.datcollate, 'ctype', d.datctype,
  'icu_locale', case to_jsonb(d) ->> 'datlocprovider'
    when 'i' then coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale') end,
  'checksums', current_setting('data_checksums') = 'on',
  'wal_segment_mb', pg_size_bytes(current_setting('wal_segment_size')) / 1048576,
  'config_file', current_setting('config_file'),
  'tablespaces', (select count(*) from pg_tablespace where spcname not in ('pg_default', 'pg_global'))
) from pg_database d where d.datname = 'template0';
