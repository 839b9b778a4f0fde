#!/usr/bin/env -S bun --no-env-file
/** uri: prints one connection string for a formation, to hand to an application. */
import { defineCommand } from "citty";
import { groupArg, locateMonitor, whereArgs } from "../lib/config.ts";
import { formationUri, URI_FORMATS, type UriFormat } from "../lib/group/uri.ts";
import { openMonitor } from "../lib/monitor/client.ts";
import { answer, logArgs, main } from "../lib/sys/cli.ts";
import { AppError } from "../lib/sys/errors.ts";
import { tlsParamsOf } from "../lib/sys/sql.ts";

const uri = defineCommand({
  meta: {
    name: "uri",
    description: "Print a formation's connection string: it finds the primary by itself",
  },
  args: {
    ...logArgs,
    ...whereArgs,
    group: groupArg,
    format: {
      type: "enum",
      options: [...URI_FORMATS],
      default: "libpq",
      description: "libpq, keyword, jdbc or json",
    },
    username: { type: "string", description: "The login to put into it" },
    sslmode: { type: "string", description: "libpq's sslmode" },
  },
  async run({ args }) {
    const at = locateMonitor(args);
    await using monitor = openMonitor(at.monitor);
    const { dbname } = await monitor.formationSettings(at.formation);
    const nodes = (await monitor.state(at.formation)).filter((node) => node.group_id === at.group);
    if (nodes.length === 0) {
      throw new AppError("state", "the formation has no nodes", {
        detail: { formation: at.formation, group: at.group },
        hint: "Give another --formation or --group, or create nodes with roles/keeper.ts create.",
      });
    }
    answer(
      formationUri(
        {
          hosts: nodes.map(({ nodehost, nodeport }) => ({ host: nodehost, port: nodeport })),
          database: String(dbname),
          user: args.username,
          parameters: {
            target_session_attrs: "read-write",
            ...tlsParamsOf(at.monitor),
            ...(args.sslmode === undefined ? {} : { sslmode: args.sslmode }),
          },
        },
        args.format as UriFormat,
      ),
    );
  },
});

await main(uri);
