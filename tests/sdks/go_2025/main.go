// Sends events with posthog-go of 2025, asks for flags, and says what it believes delivered.
//
//	sender '{"host": …, "token": …, "events": …}'
//
// The SDK calls back for each event whose batch is answered below 300, and for each it gives up.
// Close ends the wait for a next try, so it is called when every event has been called back for.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/posthog/posthog-go"
)

type told struct {
	sync.Mutex
	Believed []int    `json:"believed"`
	Errors   []string `json:"errors"`
	Flags    string   `json:"flags"`
}

func (t *told) Success(message posthog.APIMessage) {
	t.Lock()
	defer t.Unlock()
	if event, ok := message.(posthog.CaptureInApi); ok {
		if n, ok := event.Properties["n"].(int); ok {
			t.Believed = append(t.Believed, n)
		}
	}
}

func (t *told) Failure(_ posthog.APIMessage, err error) {
	t.Lock()
	defer t.Unlock()
	t.Errors = append(t.Errors, err.Error())
}

func (t *told) heard() int {
	t.Lock()
	defer t.Unlock()
	return len(t.Believed) + len(t.Errors)
}

func main() {
	var wanted struct {
		Host, Token string
		Events      int
	}
	must(json.Unmarshal([]byte(os.Args[1]), &wanted))
	said := &told{Believed: []int{}, Errors: []string{}}
	client, err := posthog.NewWithConfig(wanted.Token, posthog.Config{
		Endpoint:                           wanted.Host,
		PersonalApiKey:                     "phx_of_somebody",
		DefaultFeatureFlagsPollingInterval: 200 * time.Millisecond,
		BatchSize:                          50,
		Interval:                           200 * time.Millisecond,
		RetryAfter:                         func(int) time.Duration { return 100 * time.Millisecond },
		Callback:                           said,
	})
	must(err)
	flags, err := client.GetAllFlags(posthog.FeatureFlagPayloadNoKey{DistinctId: "somebody"})
	must(err)
	flag, err := client.GetFeatureFlag(posthog.FeatureFlagPayload{Key: "a-flag", DistinctId: "p0"})
	must(err)
	said.Flags = fmt.Sprint(flags, flag)
	must(client.Enqueue(posthog.Identify{DistinctId: "p0"}))
	must(client.Enqueue(posthog.Alias{DistinctId: "p0", Alias: "q0"}))
	must(client.Enqueue(posthog.GroupIdentify{Type: "company", Key: "a"}))
	for n := 0; n < wanted.Events; n++ {
		properties := posthog.Properties{"n": n, "text": strings.Repeat("é\u2028", 20)}
		event := posthog.Capture{DistinctId: fmt.Sprint("p", n%50), Event: "tick", Properties: properties}
		must(client.Enqueue(event))
	}
	for end := time.Now().Add(time.Minute); said.heard() < wanted.Events && time.Now().Before(end); {
		time.Sleep(50 * time.Millisecond)
	}
	must(client.Close())
	must(json.NewEncoder(os.Stdout).Encode(said))
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
