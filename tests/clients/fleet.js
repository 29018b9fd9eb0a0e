'use strict'
// Runs many clients in one process with the defaults of socket.io-client: polling, then an upgrade,
// and a new connection after the server has gone.
//
//   node fleet.js
//
// Reads commands from stdin and writes events to stdout, each a line of JSON as in socket_io.js.
// The clients alternate between versions 2 and 4 of the library, and subscribe again after every
// login:
//
//   {"do":"start","name":"c","count":200,"url":"http://…","query":{…},"dbs":["db"]}
//
// With `"addresses":true` each client connects from its own address, 127.0.1.1 and so on.
//
//   {"of":"c7","event":"authenticated"}      {"of":"c7","event":"upgraded"}
//   {"of":"c7","event":"ack","to":"subscribe","data":{…}}
//   {"of":"c7","event":"change","db":"db"}   {"of":"c7","event":"connect_error"|"disconnect", …}

const http = require('node:http')
const readline = require('node:readline')

const libraries = [require('sio2'), require('sio4').io]

function emit (of, event, more) {
  process.stdout.write(JSON.stringify({ of, event, ...more }) + '\n')
}

function start ({ name, count, url, query, dbs, addresses }) {
  for (let number = 0; number < count; number++) {
    const as = name + number
    const agent = addresses ? new http.Agent({ localAddress: `127.0.1.${number + 1}` }) : undefined
    const socket = libraries[number % libraries.length](url, { forceNew: true, query, agent })
    socket.on('connect', () => {
      const engine = socket.io.engine
      if (engine.transport.name === 'websocket') emit(as, 'upgraded')
      else engine.once('upgrade', () => emit(as, 'upgraded'))
    })
    socket.on('connect_error', error => emit(as, 'connect_error', { message: String(error) }))
    socket.on('disconnect', reason => emit(as, 'disconnect', { reason }))
    socket.on('authenticated', () => {
      emit(as, 'authenticated')
      socket.emit('subscribe', dbs, data => emit(as, 'ack', { to: 'subscribe', data }))
    })
    socket.on('change', db => emit(as, 'change', { db }))
  }
}

readline.createInterface({ input: process.stdin })
  .on('line', line => start(JSON.parse(line)))
  .on('close', () => process.exit())
