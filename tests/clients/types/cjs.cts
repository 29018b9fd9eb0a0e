// An app in TypeScript that uses `require`.

import Client = require('couchdb-howler')

const options: Client.Options = { heartbeatMilliseconds: 10_000 }
const client: Client = new Client('https://howler.example.com', null, options)
client.on('change', (db: string, change: Client.Change) => [db, change.kind])
client.on('error', (error: Client.HowlerError) => error.name)
client.subscribe(['a', 'b']).then(() => client.logIn('u', 'p')).then(({ cookie }) => cookie.length, () => {})
const same: new (url: string) => Client = Client.default
new same('https://howler.example.com').stop()

// @ts-expect-error no such event
client.on('changed', () => {})
