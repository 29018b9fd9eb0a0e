// The types of howler.js, and what its methods and events do.

/** What is told of a change. */
export interface Change {
  /** What happened last, where it is known. CouchDB may tell several changes as one, so take it as a hint. */
  kind?: 'created' | 'updated' | 'deleted'
  /** How far the database has come, where it is known: opaque, and good for comparison only. */
  position?: string
}

/** An error of the server or of this client, told apart by its `name`. */
export interface HowlerError extends Error {
  /**
   * - `NotAuthenticatedError`: wrong name or password, or a session that has ended. Nothing is tried until `logIn`.
   * - `AccountLockedError`: CouchDB has locked the name for a while. Nothing is tried until `logIn`.
   * - `LimitError`: too many logins from the address failed, or too much is asked for.
   * - `ServiceUnavailableError`: CouchDB or the server cannot be reached.
   * - `ForbiddenError`: the database named in `db` may not be read; its subscription has ended.
   * - `LimitError`: too much, too long or too fast.
   * - `TypeError`: an argument that is none.
   * - `AbortError`: a later `logIn`, `logOut` or `stop` took the place of this `logIn`.
   */
  name: string
  /** The database that it is about. */
  db?: string
}

/** Keeps the session: what is given to `set` comes back from `get`, until `clear`. Each may return a promise. */
export interface Session {
  get (): string | null | undefined | Promise<string | null | undefined>
  set (cookie: string): unknown
  clear (): unknown
}

/** Keeps for each database what was dealt with: a string that means nothing to others. Each may return a promise. */
export interface Positions {
  get (db: string): string | null | undefined | Promise<string | null | undefined>
  set (db: string, known: string): unknown
}

/** How long to wait before connecting again: between a tenth of the longest wait and all of it, at random. */
export interface Backoff {
  /** Longest wait before the first try, in milliseconds; 2000 by default. */
  initial?: number
  /** What the longest wait is multiplied by after each failure; 2 by default. */
  factor?: number
  /** Where it stops growing, in milliseconds; 30000 by default. */
  maximum?: number
}

/** What the third argument may hold. */
export interface Options {
  /**
   * When nothing was heard for so long, the server is asked for a sign of life; when none comes within half as long
   * again, the connection is dead and a new one is made. 30000 by default; 0 switches it off. Browsers let the timers
   * of hidden pages run late, by a minute or more: there a dead connection is found later, or when the page is shown.
   */
  heartbeatMilliseconds?: number
  /** How long connecting may take, with the log-in; 45000 by default. */
  connectMilliseconds?: number
  /** How long `logOut` waits for the server; 5000 by default. */
  logOutMilliseconds?: number
  /** The class of WebSockets, where there is no global one (Node before version 22): that of `ws`. */
  WebSocket?: new (url: string, protocol: string) => any
  /**
   * Where positions are kept, so that changes which happened while the app did not run are told at its next start:
   * for example `Client.localPositions()`. By default they last as long as the client.
   */
  positions?: Positions
  /** How long to wait before connecting again. */
  backoff?: Backoff
}

/** What is called at each event, by its name. */
export interface Events {
  /** Connected and logged in. */
  connect: () => unknown
  /** All subscriptions are in place, and what changed meanwhile was told. */
  ready: () => unknown
  /** No longer connected. It connects again by itself, unless `logOut`, `stop` or `logIn` was called. */
  disconnect: () => unknown
  /** Something was refused, or cannot be done now; see `HowlerError`. Without a listener it goes to the console. */
  error: (error: HowlerError) => unknown
  /**
   * A database changed, now or while there was no connection. The listener may return a promise: the position is
   * remembered when all listeners are through, so that a change whose listener failed, or was cut short by the end of
   * the app, is told again when the client connects the next time.
   */
  change: (db: string, change: Change) => unknown
  /** Changes may have been missed; `change` follows for every database subscribed to. */
  resync: (resync: { reason?: string }) => unknown
  /** The session was renewed; it is stored already. */
  session: (cookie: string) => unknown
}

/**
 * Says which CouchDB databases changed.
 *
 * The session of a log-in is kept for later: in browsers in a cookie named `couchdb-howler-session` for 30 days, in
 * Node as long as the client lasts. A client whose session holds one connects by itself when it is made.
 */
export default class Client {
  /**
   * @param url where the server is: `http`, `https`, `ws` or `wss`, with a path where a proxy serves it below one
   * @param session keeps the session in the place of a cookie
   * @param options options, or the milliseconds between heartbeats alone
   */
  constructor (url: string | URL, session?: Session | null, options?: number | Options | null)

  /**
   * Logs in by name and password, or by a cookie alone. Resolves when subscriptions are in place, too. Rejects when it
   * was refused; where the server cannot be reached it is tried again, each failure being told by `error`, until it
   * succeeds or `logIn`, `logOut` or `stop` is called, which rejects it with `AbortError`.
   */
  logIn (username?: string | null, password?: string | null, cookie?: string | null): Promise<{ cookie: string, username: string }>

  /** Logs out, forgets the session, and disconnects. Subscriptions are kept for the next `logIn`. */
  logOut (): Promise<void>

  /**
   * Subscribes to a database, or several. Resolves when the server has acknowledged it; at once when not connected, or
   * when the connection breaks meanwhile: it is kept then, and sent after the next log-in. Rejects when it was refused.
   *
   * A database that is new to the client is not told as changed: bring it up to date yourself. One whose position
   * is known, from before a break or from the store, is told as changed when it has changed since.
   */
  subscribe (db: string | readonly string[]): Promise<void>

  /** Gives up a database, or several: from now on no `change` of it is told. Its position is kept. */
  unsubscribe (db: string | readonly string[]): Promise<void>

  /** Disconnects and stays so until the next `logIn`. Session and subscriptions are kept. */
  stop (): void

  /** Whether it is connected and logged in. */
  isConnected (): boolean

  /** Calls a function at every such event. */
  on<E extends keyof Events> (event: E, listener: Events[E]): this
  /** Calls a function at the next such event only. */
  once<E extends keyof Events> (event: E, listener: Events[E]): this
  /** Takes a listener away. */
  off<E extends keyof Events> (event: E, listener: Events[E]): this
  /** The same as `on`. */
  addListener<E extends keyof Events> (event: E, listener: Events[E]): this
  /** The same as `off`. */
  removeListener<E extends keyof Events> (event: E, listener: Events[E]): this
  /** Takes all listeners away, or those of one event. */
  removeAllListeners (event?: keyof Events): this
  /** How many listeners an event has. */
  listenerCount (event: keyof Events): number
  /** Calls the listeners of an event; whether there were any. */
  emit<E extends keyof Events> (event: E, ...rest: Parameters<Events[E]>): boolean

  /**
   * A store of positions in `localStorage`, for the option `positions`.
   *
   * @param prefix what its keys begin with; apps that share an origin and have databases of the same name need their own
   */
  static localPositions (prefix?: string): Positions & { delete (db: string): void }
}
