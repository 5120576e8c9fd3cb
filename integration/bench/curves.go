package main

import (
	"context"
	"fmt"
	"math"
	"os"
	"strings"
)

// The curves: fleets and configurations of these sizes, the other one fixed.
var (
	curveNodes     = []int{100, 500, 1000, 2000, 5000}
	curveResources = []int{100, 1000, 10000, 50000}
)

// point is what one change costs at a size.
type point struct {
	size     int
	p99, cpu float64 // ms
}

// curves measures how the cost of a change for every proxy grows with the fleet and
// with the configuration, and draws it.
func curves(ctx context.Context, r *run) error {
	at := func(s *configServer, nodes int) (point, error) {
		f := newSimulated(s)
		defer f.stop()
		if err := f.connect(ctx, nodes, everywhere, true); err != nil {
			return point{}, err
		}
		var found reach
		for round := range 2 * r.rounds {
			if err := f.changes(ctx, &found, 0, "s0", fmt.Sprintf("%d-%d", nodes, round), 5); err != nil {
				return point{}, err
			}
		}
		return point{nodes, median(found.p99), median(found.cpu)}, nil
	}
	var fleets, sizes []point
	for _, n := range curveResources {
		s, err := r.startControl(ctx, fmt.Sprintf("curve-%d", n), n)
		if err != nil {
			return err
		}
		measured := []int{fleetNodes}
		if n == fleetResources {
			measured = curveNodes
		}
		for _, nodes := range measured {
			p, err := at(s, nodes)
			if err != nil {
				r.end(s)
				return fmt.Errorf("%d proxies, %d resources: %w", nodes, n, err)
			}
			r.printf("  %5d proxies, %5d resources: 99 %% after %.0f ms, %.0f ms of CPU\n", nodes, n, p.p99, p.cpu)
			if n == fleetResources {
				fleets = append(fleets, p)
			}
			if nodes == fleetNodes {
				sizes = append(sizes, point{n, p.p99, p.cpu})
			}
		}
		r.end(s)
	}
	svg := draw(fmt.Sprintf("proxies, with %d resources", fleetResources), fleets, fmt.Sprintf("resources, with %d proxies", fleetNodes), sizes)
	if r.curves == "" {
		return nil
	}
	return os.WriteFile(r.curves, []byte(svg), 0o644) //nolint:gosec // a picture for docs
}

// draw makes a picture of two panels, both axes of each logarithmic.
func draw(left string, a []point, right string, b []point) string {
	const width, height, margin = 340, 240, 50
	var s strings.Builder
	fmt.Fprintf(&s, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="11">`+"\n<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n", 2*(width+margin)+margin, height+2*margin)
	fmt.Fprintf(&s, "<text x=\"%d\" y=\"20\">One change for every proxy: <tspan fill=\"#1f6feb\">99 %% have acknowledged</tspan>, <tspan fill=\"#d1570b\">CPU of the control plane</tspan>; milliseconds</text>\n", margin)
	panel := func(x0 int, title string, ps []point) {
		if len(ps) == 0 {
			return
		}
		low, high := ps[0].size, ps[len(ps)-1].size
		const least, most = 1.0, 1000.0
		x := func(n int) float64 {
			return float64(x0) + width*math.Log(float64(n)/float64(low))/math.Log(float64(max(high, low+1))/float64(low))
		}
		y := func(v float64) float64 {
			v = min(max(v, least), most)
			return margin + height*(1-math.Log(v/least)/math.Log(most/least))
		}
		for _, v := range []float64{1, 10, 100, 1000} {
			fmt.Fprintf(&s, "<line x1=\"%d\" x2=\"%d\" y1=\"%.0f\" y2=\"%.0f\" stroke=\"#ddd\"/><text x=\"%d\" y=\"%.0f\" text-anchor=\"end\">%.0f</text>\n", x0, x0+width, y(v), y(v), x0-6, y(v)+4, v)
		}
		for _, p := range ps {
			fmt.Fprintf(&s, "<text x=\"%.0f\" y=\"%d\" text-anchor=\"middle\">%d</text>\n", x(p.size), margin+height+16, p.size)
		}
		fmt.Fprintf(&s, "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\">%s</text>\n", x0+width/2, margin+height+36, title)
		for _, line := range []struct {
			colour string
			of     func(point) float64
		}{{"#1f6feb", func(p point) float64 { return p.p99 }}, {"#d1570b", func(p point) float64 { return p.cpu }}} {
			var path []string
			for _, p := range ps {
				path = append(path, fmt.Sprintf("%.1f,%.1f", x(p.size), y(line.of(p))))
				fmt.Fprintf(&s, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" fill=\"%s\"><title>%.0f ms</title></circle>\n", x(p.size), y(line.of(p)), line.colour, line.of(p))
			}
			fmt.Fprintf(&s, "<polyline points=\"%s\" fill=\"none\" stroke=\"%s\" stroke-width=\"2\"/>\n", strings.Join(path, " "), line.colour)
		}
	}
	panel(margin, left, a)
	panel(2*margin+width, right, b)
	s.WriteString("</svg>\n")
	return s.String()
}
