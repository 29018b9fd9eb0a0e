// An app in TypeScript that uses every method, event and option of the client; checked by `tsc --noEmit --strict`.

import Client, { type Change, type HowlerError, type Options, type Positions, type Session } from 'couchdb-howler'

const session: Session = { get: async () => 'AuthSession=…', set: async cookie => cookie.length, clear () {} }
const known = new Map<string, string>()
const positions: Positions = known
const options: Options = {
  heartbeatMilliseconds: 10_000, connectMilliseconds: 5_000, logOutMilliseconds: 1_000, WebSocket, positions,
  backoff: { initial: 100, factor: 1.5, maximum: 5_000 }
}

const client = new Client('https://howler.example.com/prefix', session, options)
const others: Client[] = [
  new Client('ws://localhost:3000'), new Client('http://localhost:3000', undefined, 10_000),
  new Client(new URL('http://localhost:3000'), null, { positions: Client.localPositions('app:') })
]

async function sync (db: string, { kind, position }: Change): Promise<void> {
  const words: string[] = [db, kind ?? 'unknown', position ?? 'unknown']
  await others[0].subscribe(words)
}

client.on('change', sync).on('change', db => db.length).once('ready', () => {}).addListener('connect', () => {})
client.on('disconnect', () => {}).on('resync', ({ reason }) => reason?.length).on('session', cookie => cookie.length)
const fails = (error: HowlerError): void => {
  if (error.name === 'ForbiddenError') console.log(error.db?.length, error.message)
}
client.on('error', fails).off('error', fails).removeListener('error', fails).removeAllListeners('error').removeAllListeners()

const { cookie, username }: { cookie: string, username: string } = await client.logIn('u', 'p')
await client.logIn(null, null, cookie)
await client.subscribe(username)
await client.subscribe(['a', 'b'])
await client.unsubscribe('a')
await client.unsubscribe(Object.freeze(['b']))
const connected: boolean = client.isConnected()
const listened: boolean = client.emit('change', 'a', {}) && client.listenerCount('change') > 0
await client.logOut()
client.stop()
console.log(connected, listened)

// @ts-expect-error a URL is needed
new Client()
// @ts-expect-error no such event
client.on('changed', () => {})
// @ts-expect-error names are strings
client.subscribe(1)
// @ts-expect-error a name is no number
client.on('change', (db: number) => db)
// @ts-expect-error a session that cannot be cleared
new Client('', { get: () => '', set () {} })
// @ts-expect-error no such option
new Client('', null, { heartbeat: 1 })
