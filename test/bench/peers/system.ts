/** What the race knows of a system: how it's set up, and what can be done to it. */
import type { Address, Login } from "../../helpers/sql.ts";
import type { Site } from "./site.ts";

export const SETTINGS = ["defaults", "tuned"] as const;
export type Setting = (typeof SETTINGS)[number];

/** A data node: the host's label, where its PostgreSQL listens, and its data directory. */
export type RaceNode = {
  readonly label: string;
  readonly address: Address;
  readonly pgdata: string;
};

/** A system that is up, with a primary and a standby that receives from it. */
export type System = {
  readonly nodes: readonly RaceNode[];
  /** The host of the monitor, or of etcd; undefined where there is none. */
  readonly witness: string | undefined;
  /** Of a superuser, on the nodes. */
  readonly login: Login;
  /** Starts what starts by itself when the node's host does. */
  boot(node: RaceNode): Promise<void>;
  /** The operator's command; comes back when that does. */
  switchover(primary: RaceNode, standby: RaceNode): Promise<void>;
  /** Whether the system itself calls the pair healthy: the next fault may come. */
  settled(primary: RaceNode, standby: RaceNode): Promise<boolean>;
  /**
   * What an operator has to do after a failover, where the system doesn't do it.
   *
   * @param other the node that isn't the primary, whose host is up
   */
  byHand?(primary: RaceNode, other: RaceNode): Promise<void>;
  /** Lets go of what isn't on the hosts; all that ran there is dead by then. */
  close?(): Promise<void>;
};

/** A system that takes part. */
export type Entrant = {
  readonly title: string;
  /** Programs by their paths or names, and the Debian packages that bring them. */
  readonly programs: readonly string[];
  readonly packages: readonly string[];
  /** What each setting is, for the report. */
  readonly settings: Readonly<Record<Setting, string>>;
  open(site: Site, setting: Setting): Promise<System>;
};
