// Asks for everything that posthog-node can ask for, and says what it was told.
//
//     node curious.mjs PACKAGE '{"host": …, "token": …}'

const [packageName, argument] = process.argv.slice(2)
const { host, token } = JSON.parse(argument)
const { PostHog } = await import(packageName)

const errors = []
const client = new PostHog(token, {
    host,
    personalApiKey: 'phx_of_somebody',
    enableLocalEvaluation: true,
    enableExceptionAutocapture: true,
    logs: {},
    metrics: {},
    traces: {},
    fetchRetryDelay: 50,
    featureFlagsPollingInterval: 200,
})
client.on('error', (error) => errors.push(String(error)))

const person = 'somebody'
client.capture({ distinctId: person, event: 'asked' })
client.capture({ distinctId: person, event: '$ai_generation', properties: {} })
client.identify({ distinctId: person, properties: {} })
client.alias({ distinctId: person, alias: 'another' })
client.groupIdentify({ groupType: 'company', groupKey: 'a', properties: {} })
client.captureException(new Error('on purpose'), person)
client.metrics.count('asked', 1)
const told = {
    flags: await client.getAllFlags(person),
    payload: await client.getRemoteConfigPayload('a-flag'),
    flag: (await client.getFeatureFlag('a-flag', person)) ?? null,
}
await client.reloadFeatureFlags()
await client.shutdown(10_000)
console.log(JSON.stringify({ ...told, errors }))
