// Sends events with posthog-node 1.x: `node sender_2022.mjs PACKAGE '{"host": …, "token": …, …}'`.
//
// It calls back for each event when the batch with it is answered (or given up, with an error).

import { createRequire } from 'node:module'

const [packageName, argument] = process.argv.slice(2)
const { host, token, events, options } = JSON.parse(argument)
const PostHog = createRequire(import.meta.url)(packageName)

const client = new PostHog(token, { host, ...options })
const believed = []
const errors = []
const told = []
for (let n = 0; n < events; n++) {
    const message = { distinctId: `p${n % 50}`, event: 'tick', properties: { n } }
    told.push(
        new Promise((resolve) =>
            client.capture(message, (error) => {
                error ? errors.push(String(error)) : believed.push(n)
                resolve()
            })
        )
    )
}
client.flush()
await Promise.all(told)
console.log(JSON.stringify({ believed, errors }))
process.exit(0)
