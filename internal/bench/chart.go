package bench

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"time"

	"github.com/go-analyze/charts"
)

// chart is one picture: lines over time, or bars over labels.
type chart struct {
	file, title string
	x, y, right string // right: what the second axis shows; empty: there is none
	bars        bool
	labels      []string // of bars; lines have the seconds
	lines       []line
}

type line struct {
	name  string
	ys    []float64
	right bool
}

func (c *chart) add(name string, ys []float64)      { c.lines = append(c.lines, line{name, ys, false}) }
func (c *chart) addRight(name string, ys []float64) { c.lines = append(c.lines, line{name, ys, true}) }

// histogram makes bars of the shares of values, in milliseconds. The last one takes all that is beyond the 99.5th
// percentile.
func (c *chart) histogram(seconds []float64) {
	last := 1e3 * quantile(seconds, 0.995)
	width := nice(max(last, 1e-3) / 40)
	shares := make([]float64, 1+int(last/width))
	for _, v := range seconds {
		shares[min(len(shares)-1, max(0, int(1e3*v/width)))] += 100 / float64(len(seconds))
	}
	for i := range shares {
		label := ""
		if i%5 == 0 {
			label = axis(float64(i) * width)
		}
		c.labels = append(c.labels, label)
	}
	c.add(c.y, shares)
}

// nice is the next power of ten that is not below v, or a half or a fifth of it.
func nice(v float64) float64 {
	power := math.Pow(10, math.Ceil(math.Log10(v)))
	for _, part := range []float64{5, 2} {
		if v <= power/part {
			return power / part
		}
	}
	return power
}

// axis is a value at an axis.
func axis(v float64) string {
	if v == math.Trunc(v) {
		return count(int(v))
	}
	return fmt.Sprintf("%.3g", v)
}

// Plot writes the charts of a report as SVG files into a directory, which is made when it is not there.
func (r *Report) Plot(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, c := range r.charts {
		svg, err := c.render(charts.ChartOutputSVG)
		if err != nil {
			return fmt.Errorf("%s: %w", c.file, err)
		}
		if err := os.WriteFile(filepath.Join(dir, c.file+".svg"), svg, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (c *chart) render(format string) ([]byte, error) {
	p := charts.NewPainter(charts.PainterOptions{OutputFormat: format, Width: 800, Height: 360})
	var names []string
	most := 0
	for _, l := range c.lines {
		names, most = append(names, l.name), max(most, len(l.ys))
	}
	title := charts.TitleOption{Text: c.title, FontStyle: charts.FontStyle{FontSize: 12}}
	legend := charts.LegendOption{Show: charts.Ptr(len(names) > 1), SeriesNames: names, Offset: charts.OffsetStr{Left: charts.PositionRight, Top: "24"}}
	padding := charts.NewBoxEqual(16)
	if c.bars {
		var values [][]float64
		for _, l := range c.lines {
			values = append(values, l.ys)
		}
		o := charts.NewBarChartOptionWithData(values)
		o.Title, o.Legend, o.Padding, o.ValueFormatter = title, legend, padding, axis
		o.CategoryAxis = charts.CategoryAxisOption{Title: c.x, Labels: c.labels, LabelCount: len(c.labels)}
		o.ValueAxis[0].Title = c.y
		return draw(p, p.BarChart(o))
	}
	const perSecond = int(time.Second / sampleEvery)
	step := perSecond * int(math.Max(1, nice(float64(most/perSecond)/12))) // points from one label to the next
	most = 1 + (most+step-2)/step*step
	o := charts.NewLineChartOptionWithSeries(nil)
	for _, l := range c.lines {
		series := charts.LineSeries{Name: l.name, Values: l.ys}
		if l.right {
			series.YAxisIndex = 1
		}
		for len(series.Values) < most {
			series.Values = append(series.Values, charts.GetNullValue())
		}
		o.SeriesList = append(o.SeriesList, series)
	}
	o.Title, o.Legend, o.Padding, o.ValueFormatter = title, legend, padding, axis
	o.XAxis = charts.XAxisOption{Title: c.x, BoundaryGap: charts.Ptr(false), LabelCount: 1 + most/step}
	for i := range most {
		o.XAxis.Labels = append(o.XAxis.Labels, fmt.Sprintf("%.0f", float64(i)*sampleEvery.Seconds()))
	}
	o.YAxis = []charts.YAxisOption{{Title: c.y, Min: charts.Ptr(0.)}}
	if c.right != "" {
		o.YAxis = append(o.YAxis, charts.YAxisOption{Title: c.right, Min: charts.Ptr(0.)})
	}
	o.Symbol.Shape = charts.SymbolNone
	o.LineStrokeWidth = 1.5
	return draw(p, p.LineChart(o))
}

func draw(p *charts.Painter, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	return p.Bytes()
}
